//! Several futures at once, in one task.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

/// One of them.
pub(crate) type InFlight<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Awaits all of them; they are first polled in order, which is the order that their messages are sent in.
pub(crate) async fn in_order<T>(futures: Vec<InFlight<'_, T>>) -> Vec<T> {
    let mut flights: Vec<(InFlight<'_, T>, Option<T>)> = futures.into_iter().map(|future| (future, None)).collect();
    poll_fn(|context| {
        let mut all = Poll::Ready(());
        for (future, landed) in &mut flights {
            if landed.is_none() {
                match future.as_mut().poll(context) {
                    Poll::Ready(output) => *landed = Some(output),
                    Poll::Pending => all = Poll::Pending,
                }
            }
        }
        all
    })
    .await;
    flights.into_iter().filter_map(|(_, landed)| landed).collect()
}

/// Awaits all of them, each of which lands after the one before it: sent in order like [`in_order`], but nobody is asked before
/// its turn whether it has landed. Of hundreds that would be most of the work.
pub(crate) async fn one_behind_the_other<T>(futures: Vec<InFlight<'_, T>>) -> Vec<T> {
    let mut flights = Vec::with_capacity(futures.len());
    for mut future in futures {
        let sent = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
        flights.push((future, sent));
    }
    let mut landed = Vec::with_capacity(flights.len());
    for (future, sent) in flights {
        landed.push(match sent {
            Poll::Ready(output) => output,
            Poll::Pending => future.await,
        });
    }
    landed
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn flights_are_sent_in_order() {
        let sent = Mutex::new(Vec::new());
        let flights = || {
            let flight = |n| {
                let sent = &sent;
                Box::pin(async move {
                    sent.lock().unwrap().push(n);
                    tokio::task::yield_now().await;
                    n
                }) as InFlight<'_, i32>
            };
            sent.lock().unwrap().clear();
            (0..40).map(flight).collect()
        };
        let expected: Vec<i32> = (0..40).collect();
        assert_eq!(in_order(flights()).await, expected);
        assert_eq!(*sent.lock().unwrap(), expected);
        assert_eq!(one_behind_the_other(flights()).await, expected);
        assert_eq!(*sent.lock().unwrap(), expected);
    }
}
