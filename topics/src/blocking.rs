//! Where what blocks runs: questions to Kafka, above all.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Runs what blocks on a thread that may. It runs to its end, whether or not anybody waits for it.
#[cfg(not(suture_simulated))]
pub fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    tokio::task::spawn_blocking(work)
}

/// The same in a simulation: it takes some time, and then happens at once.
#[cfg(suture_simulated)]
pub fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    crate::simulated::spawn(work)
}

/// Rests, inside of what blocks, before something is looked at again.
pub fn pause(time: Duration) {
    #[cfg(not(suture_simulated))]
    std::thread::sleep(time);
    #[cfg(suture_simulated)]
    crate::simulated::pause(time);
}

/// Hands something on from what blocks, waiting for room. `Err`: nobody listens any more.
#[cfg(not(suture_simulated))]
pub fn send<T>(sender: &mpsc::Sender<T>, value: T) -> Result<(), mpsc::error::SendError<T>> {
    sender.blocking_send(value)
}

/// The same in a simulation, where nothing may wait: the room must be enough.
#[cfg(suture_simulated)]
pub fn send<T>(sender: &mpsc::Sender<T>, value: T) -> Result<(), mpsc::error::SendError<T>> {
    match sender.try_send(value) {
        Ok(()) => Ok(()),
        Err(mpsc::error::TrySendError::Closed(value)) => Err(mpsc::error::SendError(value)),
        Err(mpsc::error::TrySendError::Full(_)) => panic!("a simulated log is longer than what is read ahead"),
    }
}
