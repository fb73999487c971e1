//! Brokers, topics, groups, and the clock of whoever writes to them.

use std::collections::BTreeMap;
use std::time::Duration;

use suture_contract::ids::{LogLetters, Participant};
use suture_contract::topic_map::{Topic, coordinator_group, ingest_group, participant_group, retry_group};
use suture_coordinator_core::ingest::rules::Rules;
use suture_topics::acks::GroupOffsets;
use suture_topics::admin;
use suture_topics::failure::KafkaFailure;
use suture_topics::plan::{Finding, Severity, Wanted};
use suture_topics::probe::{GroupInfo, Probe, TopicInfo};
use suture_topics::settings::KafkaSettings;

use super::behind::{Behind, LONG, Left, Watch};
use super::databases::{FAR_APART, Looked, now_ms};
use super::line::Line;
use crate::settings::Settings;

/// What was seen of Kafka.
pub struct Seen {
    before: Vec<Line>,
    groups: Vec<Group>,
    /// Of the requests topic that is there now.
    pub letters: Option<LogLetters>,
    /// What can be said of clocks.
    pub clock: Option<Line>,
}

/// A consumer group, and what it reads.
struct Group {
    name: String,
    /// Who must run for it.
    service: String,
    whose: Whose,
    seen: Result<GroupSeen, String>,
}

#[derive(Clone, PartialEq, Eq)]
enum Whose {
    Participant(Participant),
    Coordinator,
    Ingest,
    Retries,
}

struct GroupSeen {
    info: Option<GroupInfo>,
    /// Records that it has not done yet.
    lag: u64,
    /// Partitions of which it has committed nothing.
    without: usize,
    /// What stands beside its offsets on the decisions, each once.
    marks: Vec<String>,
    /// What it has not done for long.
    behind: Behind,
}

/// Asks the brokers, on a thread that may block.
pub async fn look(settings: &Settings, rules: Option<&Rules>, allow_single_broker: bool) -> Seen {
    let kafka = settings.kafka.clone();
    let participants = settings.participant_names().unwrap_or_default();
    let upstream: Vec<String> =
        rules.map(|rules| rules.topics().iter().map(ToString::to_string).collect()).unwrap_or_default();
    let retries = rules.filter(|rules| rules.drive_again()).map(Rules::longest_retry);
    let deadline = rules.map(Rules::longest_deadline).unwrap_or_default();
    let asked = Asked { kafka, participants, upstream, retries, deadline, allow_single_broker };
    let looked = tokio::task::spawn_blocking(move || asked.look()).await;
    looked.unwrap_or_else(|ended| Seen {
        before: vec![Line::bad(
            "brokers",
            "all",
            format!("the question ended: {ended}"),
            "nothing is known",
            "try again",
        )],
        groups: Vec::new(),
        letters: None,
        clock: None,
    })
}

impl Seen {
    /// The lines, with what the ledgers say about acknowledgements.
    pub fn lines(&self, databases: &[Looked]) -> Vec<Line> {
        let ledger = |participant: &Participant| {
            databases.iter().find(|database| database.name == participant.as_str()).and_then(Looked::ledger_id)
        };
        let lines = self.groups.iter().flat_map(|group| match &group.whose {
            Whose::Participant(participant) => group.lines(ledger(participant), self.letters),
            Whose::Coordinator | Whose::Ingest | Whose::Retries => group.lines(None, self.letters),
        });
        self.before.iter().cloned().chain(lines).collect()
    }
}

struct Asked {
    kafka: KafkaSettings,
    participants: Vec<Participant>,
    upstream: Vec<String>,
    /// The longest that what is asked for again waits for that; `None`: nothing is.
    retries: Option<Duration>,
    /// The longest that a request may wait for its votes.
    deadline: Duration,
    allow_single_broker: bool,
}

impl Asked {
    fn look(&self) -> Seen {
        match Probe::start(&self.kafka).and_then(|probe| Ok((probe.brokers()?, probe))) {
            Ok((brokers, probe)) => self.look_with(&probe, &brokers),
            Err(failure) => self.nobody(&failure),
        }
    }

    /// No broker answers: every line that would have come says so.
    fn nobody(&self, failure: &KafkaFailure) -> Seen {
        let mend = format!("start the brokers, or correct kafka.bootstrap ({})", self.kafka.bootstrap);
        let why = "nothing is decided without them; what is in doubt stays so";
        let because = "no broker answers";
        let mut before = vec![Line::bad("brokers", "all", failure.to_string(), why, mend)];
        let topics = Topic::all(&self.participants).into_iter().map(|topic| topic.name(&self.kafka.prefix));
        before.extend(topics.chain(self.upstream.iter().cloned()).map(|name| Line::unknown("topics", name, because)));
        before.extend(self.group_names().into_iter().map(|(name, _, _)| Line::unknown("groups", name, because)));
        Seen { before, groups: Vec::new(), letters: None, clock: Some(Line::unknown("clocks", "records", because)) }
    }

    fn look_with(&self, probe: &Probe, brokers: &[i32]) -> Seen {
        let mut before = vec![self.brokers(brokers)];
        let letters = probe.letters(&Topic::Requests.name(&self.kafka.prefix));
        let wanted = Wanted {
            settings: &self.kafka,
            participants: &self.participants,
            allow_single_broker: self.allow_single_broker,
        };
        match admin::plan(wanted) {
            Ok(findings) => before.extend(findings.into_iter().map(of_finding)),
            Err(failure) => {
                let mend = "grant DESCRIBE and DESCRIBE_CONFIGS on the topics, or try again";
                before.push(Line::bad("topics", "all", failure.to_string(), "their settings are not known", mend));
            }
        }
        let topics = probe.topics().unwrap_or_default();
        if topics.contains_key(&Topic::Requests.name(&self.kafka.prefix)) {
            before.push(match &letters {
                Ok(letters) => Line::ok("topics", "ids", format!("transactions begin with {letters}")),
                Err(failure) => {
                    let why = "a topic that is made anew must not use names again";
                    Line::bad("topics", "ids", failure.to_string(), why, "see what is said")
                }
            });
        }
        before.extend(self.upstream.iter().map(|topic| upstream(topic, &topics)));
        let groups = self.groups(probe, &topics);
        let clock = Some(self.clock(probe, &topics));
        Seen { before, groups, letters: letters.ok(), clock }
    }

    fn brokers(&self, brokers: &[i32]) -> Line {
        let ids: Vec<String> = brokers.iter().map(ToString::to_string).collect();
        let said = format!("{} answer (ids {})", brokers.len(), ids.join(", "));
        match brokers.len() >= 3 || self.allow_single_broker {
            true => Line::ok("brokers", self.kafka.bootstrap.as_str(), said),
            false => Line::warn(
                "brokers",
                self.kafka.bootstrap.as_str(),
                said,
                "with fewer than 3 the loss of one stops everything, or loses records",
                "start those that are down; for a laboratory, say --allow-single-broker",
            ),
        }
    }

    /// Name, service and owner of each group.
    fn group_names(&self) -> Vec<(String, String, Whose)> {
        let prefix = &self.kafka.prefix;
        let mut names = vec![(coordinator_group(prefix), "coordinator".to_string(), Whose::Coordinator)];
        if !self.upstream.is_empty() {
            names.push((ingest_group(prefix), "ingest".to_string(), Whose::Ingest));
        }
        if self.retries.is_some() {
            names.push((retry_group(prefix), "ingest".to_string(), Whose::Retries));
        }
        names.extend(self.participants.iter().map(|participant| {
            let whose = Whose::Participant(participant.clone());
            (participant_group(prefix, participant), format!("participant {participant}"), whose)
        }));
        names
    }

    fn groups(&self, probe: &Probe, topics: &BTreeMap<String, TopicInfo>) -> Vec<Group> {
        let mut offsets = GroupOffsets::new(&self.kafka);
        let mut watch = Watch::start(&self.kafka);
        let named = |topic: Topic| topic.name(&self.kafka.prefix);
        let of = |(name, service, whose): (String, String, Whose)| {
            // What its lag is measured on, and beside which offsets its mark stands.
            let read: Vec<String> = match &whose {
                Whose::Participant(participant) => {
                    vec![named(Topic::Decisions), named(Topic::Prepare(participant.clone()))]
                }
                Whose::Coordinator => vec![named(Topic::Requests)],
                Whose::Retries => vec![named(Topic::Outcomes)],
                Whose::Ingest => self.upstream.clone(),
            };
            let long = LONG
                + match &whose {
                    // It stays in front of what it is to ask for again, until it is time.
                    Whose::Retries => self.retries.unwrap_or_default(),
                    // And in front of what is not decided, until its deadline.
                    Whose::Coordinator => self.deadline,
                    Whose::Ingest | Whose::Participant(_) => Duration::ZERO,
                };
            let read: Vec<(&String, &TopicInfo)> =
                read.iter().filter_map(|topic| topics.get_key_value(topic)).collect();
            let mut seen = look_at_group(probe, &mut offsets, &name, &read, &named(Topic::Decisions));
            if let Ok((seen, left)) = &mut seen {
                match &mut watch {
                    Ok(watch) => seen.behind = watch.look(left, long),
                    Err(failure) => seen.behind.not_looked = Some(failure.to_string()),
                }
            }
            let seen = seen.map(|(seen, _)| seen);
            Group { name, service, whose, seen: seen.map_err(|failure| failure.to_string()) }
        };
        self.group_names().into_iter().map(of).collect()
    }

    /// Brokers do not tell their time; but a record from the future tells of a writer whose clock is ahead, or of ours that is
    /// behind.
    fn clock(&self, probe: &Probe, topics: &BTreeMap<String, TopicInfo>) -> Line {
        let soon = now_ms() + i64::try_from(FAR_APART.as_millis()).unwrap_or(i64::MAX);
        let mut ahead = Vec::new();
        for name in [Topic::Requests, Topic::Decisions].map(|topic| topic.name(&self.kafka.prefix)) {
            let Some(info) = topics.get(&name) else { continue };
            match probe.offsets_for_time(&name, info.partitions(), soon) {
                Ok(offsets) if offsets.iter().any(Option::is_some) => ahead.push(name),
                Ok(_) => {}
                Err(failure) => return Line::unknown("clocks", "records", failure.to_string()),
            }
        }
        match ahead.is_empty() {
            true => Line::ok("clocks", "records", "none is from the future"),
            false => Line::warn(
                "clocks",
                "records",
                format!(
                    "{} hold records that are more than {} s ahead of this machine",
                    ahead.join(" and "),
                    FAR_APART.as_secs()
                ),
                "retention and times of stories are reckoned from them",
                "run a time service (chrony) where coordinator and ingest run, and here",
            ),
        }
    }
}

fn of_finding(finding: Finding) -> Line {
    let Finding { subject, severity, what, remedy } = finding;
    let (state, why) = match severity {
        Severity::Fine => return Line::ok("topics", subject, what),
        Severity::Advice => (Line::warn as fn(_, _, _, _, _) -> _, "safe, but not as recommended"),
        Severity::Missing => (Line::bad as fn(_, _, _, _, _) -> _, "no service starts without it"),
        Severity::Wrong => (Line::bad as fn(_, _, _, _, _) -> _, "services refuse to start"),
    };
    let line: Line = state("topics", subject, what, why, remedy.clone().unwrap_or_default());
    Line { mend: remedy, ..line }
}

fn upstream(topic: &String, topics: &BTreeMap<String, TopicInfo>) -> Line {
    match topics.get(topic) {
        Some(info) => Line::ok("topics", topic.as_str(), format!("upstream, {} partitions", info.partitions())),
        None => Line::bad(
            "topics",
            topic.as_str(),
            "does not exist, or may not be seen",
            "a rule reads it, and ingest does not start without it",
            "create it, or correct topics in the rule",
        ),
    }
}

fn look_at_group(
    probe: &Probe,
    offsets: &mut GroupOffsets,
    name: &str,
    read: &[(&String, &TopicInfo)],
    decisions: &str,
) -> Result<(GroupSeen, Vec<Left>), KafkaFailure> {
    let info = probe.group(name)?;
    let mut seen = GroupSeen { info, lag: 0, without: 0, marks: Vec::new(), behind: Behind::default() };
    let mut left = Vec::new();
    for (topic, info) in read {
        let partitions: Vec<(&str, i32)> =
            (0..i32::from(info.partitions())).map(|partition| (topic.as_str(), partition)).collect();
        for ((topic, partition), committed) in partitions.iter().zip(offsets.committed(name, &partitions)?) {
            let (start, end) = probe.watermarks(topic, *partition)?;
            let from = committed.as_ref().map_or(start, |committed| committed.offset.max(start));
            left.push(Left { topic: (*topic).to_string(), partition: *partition, from, end });
            match committed {
                Some(committed) => {
                    seen.lag += end.saturating_sub(committed.offset);
                    if *topic == decisions && !seen.marks.contains(&committed.metadata) {
                        seen.marks.push(committed.metadata);
                    }
                }
                None => {
                    seen.lag += end - start;
                    seen.without += 1;
                }
            }
        }
    }
    Ok((seen, left))
}

impl Group {
    /// `ledger_id`: of the participant's database, if that could be read. `letters`: of the requests topic.
    fn lines(&self, ledger_id: Option<&str>, letters: Option<LogLetters>) -> Vec<Line> {
        let name = self.name.as_str();
        let seen = match &self.seen {
            Ok(seen) => seen,
            Err(failure) => {
                let mend = "grant DESCRIBE on the group, or try again";
                return vec![Line::bad("groups", name, failure.as_str(), "what it has done is not known", mend)];
            }
        };
        let members = seen.info.as_ref().map_or(0, |info| info.members);
        let state = seen.info.as_ref().map_or("unknown to the brokers", |info| info.state.as_str());
        let said = format!("{members} members ({state}), {} records not done", seen.lag);
        let start = format!("start suture {}", self.service);
        let mut lines = vec![match (members, seen.lag) {
            (0, 0) => Line::warn("groups", name, said, "nobody serves it", start),
            (0, _) => Line::bad("groups", name, said, "nobody serves it, and something waits", start),
            (_, _) => Line::ok("groups", name, said),
        }];
        let foreign: Vec<&str> = seen
            .marks
            .iter()
            .map(|mark| if mark.is_empty() { "a tool of Kafka's" } else { mark.as_str() })
            .filter(|mark| ledger_id.is_some_and(|id| id != *mark))
            .collect();
        lines.extend(self.behind(&seen.behind, letters));
        if !foreign.is_empty() && matches!(self.whose, Whose::Participant(_)) {
            lines.push(Line::warn(
                "groups",
                name,
                format!("acknowledged by {}, and the ledger is {}", foreign.join(", "), ledger_id.unwrap_or_default()),
                "such an offset acknowledges nothing: decisions stay in their log, and the position in the database counts",
                "it mends itself as decisions come; if the database was restored, see the runbook",
            ));
        }
        lines
    }

    /// What it has not done for long.
    fn behind(&self, behind: &Behind, letters: Option<LogLetters>) -> Vec<Line> {
        let name = format!("{} behind", self.name);
        let mut lines = Vec::new();
        if let Some(said) = behind.said() {
            let look = match (&self.whose, letters.zip(behind.oldest)) {
                (Whose::Coordinator, Some((letters, (partition, offset)))) => {
                    format!("suture tx show {letters}-{partition}-{offset} says what it waits for; and its log")
                }
                (Whose::Participant(participant), _) => {
                    format!("suture participant {participant} lost says whether it waits for you; and its log")
                }
                _ => "its log says what it waits for".to_string(),
            };
            let why = "nobody serves it, it stands still, or it cannot keep up (by the records' own times)";
            lines.push(Line::warn("groups", name.as_str(), said, why, look));
        }
        if let Some(why) = &behind.not_looked {
            lines.push(Line::unknown("groups", name, format!("how old it is: {why}")));
        }
        lines
    }
}
