//! What goes wrong with Kafka, by what the caller does about it.

use std::sync::Arc;
use std::time::Duration;

use crate::blocking;
use crate::settings::RefusedSetting;

/// A failure of a client as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KafkaFailure {
    /// No repetition helps (rights, a topic that is gone, a wrong setting): the process says so and ends.
    #[error("{0}")]
    Fatal(String),
    /// Passes by itself: the same call again.
    #[error("{0} (try again)")]
    Again(String),
}

impl KafkaFailure {
    /// Whether the process must end.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Fatal(_))
    }
}

/// How long a question that Kafka did not answer rests.
const UNTIL_ASKED_AGAIN: Duration = Duration::from_millis(250);

/// Puts a question that blocks to Kafka until it is answered, and says once that it is not: a service may be started before
/// the brokers are. Each time is a blocking job of its own, so that who gives up waiting (drops the future) does so at once.
///
/// # Errors
/// [`KafkaFailure::Fatal`]: what will not pass by itself.
pub async fn until_answered<T: Send + 'static>(
    question: impl Fn() -> Result<T, KafkaFailure> + Send + Sync + 'static,
) -> Result<T, KafkaFailure> {
    let question = Arc::new(question);
    let mut is_away = false;
    loop {
        let asked = Arc::clone(&question);
        match blocking::spawn(move || asked()).await {
            Ok(Err(KafkaFailure::Again(reason))) => {
                if !std::mem::replace(&mut is_away, true) {
                    tracing::warn!(reason, "Kafka does not answer; asking until it does");
                }
                tokio::time::sleep(UNTIL_ASKED_AGAIN).await;
            }
            Ok(answer) => return answer,
            Err(ended) => return Err(KafkaFailure::Fatal(format!("a question to Kafka ended unexpectedly: {ended}"))),
        }
    }
}

impl From<RefusedSetting> for KafkaFailure {
    fn from(refused: RefusedSetting) -> Self {
        Self::Fatal(refused.to_string())
    }
}
