//! What goes wrong with Kafka, by what the caller does about it.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

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

    /// Classes an error of librdkafka; `doing` says what failed, for example `reading suture.requests/3`.
    pub(crate) fn of(doing: impl std::fmt::Display, error: &KafkaError) -> Self {
        match code_of(error) {
            Some(code) => Self::of_code(doing, code),
            // What carries no code comes from a call that librdkafka refused at once: a wrong setting or argument.
            None => Self::Fatal(format!("{doing}: {error}")),
        }
    }

    pub(crate) fn of_code(doing: impl std::fmt::Display, code: RDKafkaErrorCode) -> Self {
        let said = format!("{doing}: {code}");
        match weight(code) {
            Weight::Topic | Weight::Client => Self::Fatal(said),
            Weight::Passing => Self::Again(said),
        }
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
        match tokio::task::spawn_blocking(move || asked()).await {
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

/// How much is lost with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weight {
    /// Nothing: brokers come and go.
    Passing,
    /// One topic cannot be used: gone, or not for us.
    Topic,
    /// The client cannot be used at all.
    Client,
}

/// rdkafka says it of all errors but those of the admin client.
fn code_of(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        error => error.rdkafka_error_code(),
    }
}

pub(crate) fn weight(code: RDKafkaErrorCode) -> Weight {
    use RDKafkaErrorCode as Code;
    match code {
        Code::UnknownTopicOrPartition
        | Code::UnknownTopic
        | Code::UnknownPartition
        | Code::UnknownTopicId
        | Code::InvalidTopic
        | Code::TopicAuthorizationFailed
        | Code::PolicyViolation => Weight::Topic,
        Code::Fatal
        | Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::InvalidSessionTimeout
        | Code::InconsistentGroupProtocol
        | Code::InvalidGroupId
        | Code::UnsupportedVersion
        | Code::UnsupportedFeature
        | Code::InvalidArgument
        | Code::InvalidConfig
        | Code::NotConfigured
        | Code::InvalidRequest
        | Code::CriticalSystemResource => Weight::Client,
        _ => Weight::Passing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_goes_away_is_no_reason_to_end() {
        let gone = RDKafkaErrorCode::BrokerTransportFailure;
        for error in [KafkaError::AdminOp(gone), KafkaError::MetadataFetch(gone), KafkaError::OffsetFetch(gone)] {
            assert!(!KafkaFailure::of("asking", &error).is_fatal(), "{error}");
        }
    }
}
