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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn flights_are_sent_in_order() {
        let sent = Mutex::new(Vec::new());
        let flights = (0..40).map(|n| {
            let sent = &sent;
            Box::pin(async move {
                sent.lock().unwrap().push(n);
                tokio::task::yield_now().await;
                n
            }) as InFlight<'_, i32>
        });
        let landed = in_order(flights.collect()).await;
        assert_eq!(landed, (0..40).collect::<Vec<_>>());
        assert_eq!(*sent.lock().unwrap(), landed);
    }
}
