//! Every topic, declared once: purpose, writer, reader, key and settings. `suture topics`, the code that opens topics and
//! the table in `docs/protocol.md` all derive from [`Topic::declaration`].

use std::time::Duration;

use crate::ids::{Deployment, Participant};

/// How many shards a deployment has, for life, unless configured otherwise before the first start.
pub const DEFAULT_PARTITIONS: u16 = 12;

const DAY: Duration = Duration::from_secs(86_400);

/// A protocol topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs)]
pub enum Topic {
    Requests,
    Prepare(Participant),
    Votes(Participant),
    Decisions,
    Outcomes,
    Rejected,
}

/// What a topic is for and how it must be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declaration {
    /// What stands in it.
    pub purpose: &'static str,
    /// Who may write.
    pub writer: &'static str,
    /// Who reads.
    pub reader: &'static str,
    /// What the record key is.
    pub key: &'static str,
    /// How Kafka forgets.
    pub cleanup: Cleanup,
}

/// How Kafka forgets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cleanup {
    /// Records older than this go.
    Delete {
        /// The age.
        retention: Duration,
    },
    /// The last record of each key stays.
    Compact,
}

/// One Kafka topic setting, and how strictly it is held to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Kafka's name for it.
    pub name: &'static str,
    /// The value a new topic gets.
    pub value: String,
    /// What a check says of another value.
    pub rule: Rule,
}

/// How strictly a setting is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Another value breaks safety: refused. The text says what breaks.
    Exactly(&'static str),
    /// A lower number breaks safety: refused. `-1` counts as endless. The text says what breaks.
    AtLeast(&'static str),
    /// A good default; another value is the operator's choice.
    Advice,
}

impl Topic {
    /// All topics of a deployment with these participants, in the order of a transaction.
    pub fn all(participants: &[Participant]) -> Vec<Self> {
        let mut topics = vec![Self::Requests];
        topics.extend(participants.iter().cloned().map(Self::Prepare));
        topics.extend(participants.iter().cloned().map(Self::Votes));
        topics.extend([Self::Decisions, Self::Outcomes, Self::Rejected]);
        topics
    }

    /// The topic's full name.
    pub fn name(&self, deployment: &Deployment) -> String {
        match self {
            Self::Requests => format!("{deployment}.requests"),
            Self::Prepare(participant) => format!("{deployment}.prepare.{participant}"),
            Self::Votes(participant) => format!("{deployment}.votes.{participant}"),
            Self::Decisions => format!("{deployment}.decisions"),
            Self::Outcomes => format!("{deployment}.outcomes"),
            Self::Rejected => format!("{deployment}.rejected"),
        }
    }

    /// The topic of a full name; `None` for what is not this deployment's.
    pub fn parse(name: &str, deployment: &Deployment) -> Option<Self> {
        let rest = name.strip_prefix(deployment.as_str())?.strip_prefix('.')?;
        match rest.split_once('.') {
            None => match rest {
                "requests" => Some(Self::Requests),
                "decisions" => Some(Self::Decisions),
                "outcomes" => Some(Self::Outcomes),
                "rejected" => Some(Self::Rejected),
                _ => None,
            },
            Some(("prepare", participant)) => participant.parse().ok().map(Self::Prepare),
            Some(("votes", participant)) => participant.parse().ok().map(Self::Votes),
            Some(_) => None,
        }
    }

    /// What the topic is for and how it must be set.
    pub fn declaration(&self) -> Declaration {
        match self {
            Self::Requests => Declaration {
                purpose: "what is asked for: requests and cancellations",
                writer: "ingest, or an application",
                reader: "coordinator (group `<prefix>.coordinator`), ingest when it drives again",
                key: "order key",
                cleanup: Cleanup::Delete { retention: 7 * DAY },
            },
            Self::Prepare(_) => Declaration {
                purpose: "asks one participant to prepare its branch",
                writer: "coordinator",
                reader: "that participant only",
                key: "txid",
                cleanup: Cleanup::Delete { retention: 7 * DAY },
            },
            Self::Votes(_) => Declaration {
                purpose: "one participant's vote registers: the first record of a txid is the vote",
                writer: "that participant; the coordinator's no",
                reader: "coordinator; that participant when its database is brought back",
                key: "txid",
                cleanup: Cleanup::Delete { retention: 14 * DAY },
            },
            Self::Decisions => Declaration {
                purpose: "the decision log",
                writer: "coordinator",
                reader: "participants, and who may know",
                key: "txid",
                cleanup: Cleanup::Compact,
            },
            Self::Outcomes => Declaration {
                purpose: "results with their reasons; every abort is somebody's work item, and so is every incident",
                writer: "coordinator; participants their incidents",
                reader: "submitters, operators, ingest (group `<prefix>.retry`)",
                key: "business key; an incident without one: txid, or origin",
                cleanup: Cleanup::Delete { retention: 30 * DAY },
            },
            Self::Rejected => Declaration {
                purpose: "what could not be accepted, why, and where it came from",
                writer: "ingest, coordinator",
                reader: "operators",
                key: "origin",
                cleanup: Cleanup::Delete { retention: 30 * DAY },
            },
        }
    }

    /// The Kafka settings of this topic with `replicas` copies: 3 in production, 1 on a single broker.
    pub fn settings(&self, replicas: i32) -> Vec<Setting> {
        let setting = |name, value: String, rule| Setting { name, value, rule };
        let ms = |duration: Duration| duration.as_millis().to_string();
        let mut settings = Vec::new();
        match self.declaration().cleanup {
            Cleanup::Delete { retention } => {
                let (policy, age) = match self {
                    Self::Votes(_) => (
                        Rule::Exactly("a compacted votes topic keeps the last vote, and the first one counts"),
                        Rule::AtLeast("votes must outlive their requests by 7 days"),
                    ),
                    Self::Requests => (
                        Rule::Exactly("compaction by order key would lose requests"),
                        Rule::AtLeast("a shorter outage of the coordinator would lose requests"),
                    ),
                    _ => (Rule::Exactly("compaction would lose records"), Rule::Advice),
                };
                settings.push(setting("cleanup.policy", "delete".to_string(), policy));
                settings.push(setting("retention.ms", ms(retention), age));
                settings.push(setting(
                    "retention.bytes",
                    "-1".to_string(),
                    Rule::Exactly("records must leave by age, never by size"),
                ));
                settings.push(setting("segment.ms", ms(DAY), Rule::Advice));
            }
            Cleanup::Compact => {
                settings.push(setting(
                    "cleanup.policy",
                    "compact".to_string(),
                    Rule::Exactly("a decision must outlive every participant's absence"),
                ));
                settings.push(setting("segment.ms", ms(Duration::from_secs(3_600)), Rule::Advice));
                settings.push(setting("segment.bytes", (64 << 20).to_string(), Rule::Advice));
                settings.push(setting("min.compaction.lag.ms", ms(DAY), Rule::Advice));
                settings.push(setting("max.compaction.lag.ms", ms(14 * DAY), Rule::Advice));
            }
        }
        settings.push(setting(
            "min.insync.replicas",
            (replicas - 1).max(1).to_string(),
            Rule::AtLeast("an acknowledged record could be lost with one broker"),
        ));
        settings.push(setting(
            "unclean.leader.election.enable",
            "false".to_string(),
            Rule::Exactly("a stale leader changes which vote is first"),
        ));
        settings.push(setting("message.timestamp.type", "LogAppendTime".to_string(), Rule::Advice));
        settings
    }
}

impl Cleanup {
    /// As documentation shows it, for example `delete, 7 d`.
    pub fn describe(self) -> String {
        match self {
            Self::Delete { retention } => format!("delete, {} d", retention.as_secs() / DAY.as_secs()),
            Self::Compact => "compact".to_string(),
        }
    }
}

/// The table of topics as it stands in the documentation.
pub fn markdown_table() -> String {
    let participant: Participant = "participant".parse().expect("a valid name");
    let deployment: Deployment = "suture".parse().expect("a valid name");
    let mut table =
        String::from("| topic | purpose | key | cleanup | written by | read by |\n|---|---|---|---|---|---|\n");
    for topic in Topic::all(&[participant]) {
        let Declaration { purpose, writer, reader, key, cleanup } = topic.declaration();
        let name = topic.name(&deployment).replace(".participant", ".<participant>");
        let row = format!("| `{name}` | {purpose} | {key} | {} | {writer} | {reader} |\n", cleanup.describe());
        table.push_str(&row);
    }
    table
}

/// The consumer group of the coordinator.
pub fn coordinator_group(deployment: &Deployment) -> String {
    format!("{deployment}.coordinator")
}

/// The consumer group of ingest.
pub fn ingest_group(deployment: &Deployment) -> String {
    format!("{deployment}.ingest")
}

/// The consumer group in which ingest reads the outcomes, to drive retryable aborts again. While it lags,
/// something waits for that.
pub fn retry_group(deployment: &Deployment) -> String {
    format!("{deployment}.retry")
}

/// The consumer group of a participant. Its committed offset on the decisions is the acknowledgement.
pub fn participant_group(deployment: &Deployment, participant: &Participant) -> String {
    format!("{deployment}.participant.{participant}")
}
