//! How much is lost with an error of librdkafka.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::failure::KafkaFailure;

impl KafkaFailure {
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
