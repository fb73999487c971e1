//! Topics as they are against topics as they are declared. Pure: what the cluster says comes in as values.
//!
//! Each deviation is one line: what is wrong, why it matters, and the Kafka command that mends it. Nothing here alters a
//! topic, and no code of Suture does: Kafka's `alter` calls reset what they do not name, and an operator should read such
//! a command before it runs.
//!
//! | deviation | judged |
//! |---|---|
//! | no such topic | missing: `suture topics apply` creates it |
//! | partition count | wrong: `shard = murmur2(order key) mod partitions` |
//! | replication below 3 (below 1 with `--allow-single-broker`) | wrong |
//! | a setting against its [`Rule`] | wrong, or advice |
//! | votes not kept 7 days longer than the requests really are | wrong |
//! | more in-sync replicas demanded than there are copies | wrong: nothing could be written |
//!
//! Left out: topics of participants that are not asked for, ACLs, anything about upstream topics.

use std::collections::BTreeMap;
use std::fmt;

use suture_contract::ids::Participant;
use suture_contract::topic_map::{Rule, Setting, Topic};

use crate::probe::TopicInfo;
use crate::settings::KafkaSettings;

/// Copies of each record that survive the loss of a broker without losing acknowledged records.
pub const REPLICAS: u16 = 3;

const SEVEN_DAYS_MS: i64 = 7 * 86_400_000;

/// What is asked of the cluster.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Where, which prefix, how many partitions.
    pub settings: &'a KafkaSettings,
    /// Whose topics.
    pub participants: &'a [Participant],
    /// For a laboratory: one copy of each record is enough.
    pub allow_single_broker: bool,
}

/// A topic as the cluster describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its partitions and where their copies are.
    pub info: TopicInfo,
    /// Its settings, also those that come from the broker's defaults.
    pub settings: BTreeMap<String, String>,
}

/// One line of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The topic's full name, or `cluster`.
    pub subject: String,
    /// How bad.
    pub severity: Severity,
    /// What is so, and why it matters.
    pub what: String,
    /// The command that mends it, or what to do.
    pub remedy: Option<String>,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As declared.
    Fine,
    /// Safe, but not as recommended: the operator's choice.
    Advice,
    /// Not there yet.
    Missing,
    /// Breaks safety: refused.
    Wrong,
}

/// Compares. One finding at least for each topic, in the order of a transaction.
pub fn compare(wanted: Wanted<'_>, brokers: &[i32], seen: &BTreeMap<String, Seen>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let topics = Topic::all(wanted.participants);
    let name = |topic: &Topic| topic.name(&wanted.settings.prefix);
    let any_missing = topics.iter().any(|topic| !seen.contains_key(&name(topic)));
    let count = brokers.len();
    if any_missing && count < usize::from(replicas_to_create(wanted, count)) {
        findings.push(Finding {
            subject: "cluster".to_string(),
            severity: Severity::Wrong,
            what: format!("has {count} broker(s); {REPLICAS} copies of each record need {REPLICAS}"),
            remedy: Some("start more brokers, or, for a laboratory only, add --allow-single-broker".to_string()),
        });
    }
    let requests_retention = seen.get(&name(&Topic::Requests)).and_then(|seen| number(seen, "retention.ms"));
    for topic in topics {
        let subject = name(&topic);
        match seen.get(&subject) {
            None => findings.push(missing(wanted, count, &topic, subject)),
            Some(seen) => {
                let judge = Judge { wanted, brokers, subject, seen, findings: Vec::new() };
                findings.extend(judge.judge(&topic, requests_retention));
            }
        }
    }
    findings
}

/// Whether a deployment may run on these topics.
pub fn is_safe(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.severity <= Severity::Advice)
}

/// How many copies a new topic gets.
pub(crate) fn replicas_to_create(wanted: Wanted<'_>, brokers: usize) -> u16 {
    if wanted.allow_single_broker && brokers < usize::from(REPLICAS) { 1 } else { REPLICAS }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Fine => "ok     ",
            Severity::Advice => "advice ",
            Severity::Missing => "missing",
            Severity::Wrong => "WRONG  ",
        };
        write!(f, "{severity} {}: {}", self.subject, self.what)?;
        match &self.remedy {
            Some(remedy) => write!(f, "; mend: {remedy}"),
            None => Ok(()),
        }
    }
}

fn missing(wanted: Wanted<'_>, brokers: usize, topic: &Topic, subject: String) -> Finding {
    let replicas = replicas_to_create(wanted, brokers);
    let what = format!(
        "does not exist; would get {} partitions, {replicas} copies, {}",
        wanted.settings.partitions,
        topic.declaration().cleanup.describe()
    );
    Finding { subject, severity: Severity::Missing, what, remedy: Some("suture topics apply".to_string()) }
}

/// One existing topic.
struct Judge<'a> {
    wanted: Wanted<'a>,
    brokers: &'a [i32],
    subject: String,
    seen: &'a Seen,
    findings: Vec<Finding>,
}

impl Judge<'_> {
    fn judge(mut self, topic: &Topic, requests_retention: Option<i64>) -> Vec<Finding> {
        self.partitions();
        if !self.findings.is_empty() {
            // The topic is to be made anew, so no other mend is worth a line.
            return self.findings;
        }
        self.replication();
        let replicas = if self.wanted.allow_single_broker { 1 } else { REPLICAS };
        for setting in topic.settings(i32::from(replicas)) {
            self.setting(&setting);
        }
        if matches!(topic, Topic::Votes(_)) {
            self.votes_outlive(requests_retention);
        }
        if self.findings.is_empty() {
            let what = format!(
                "as declared ({} partitions, {} copies)",
                self.seen.info.partitions(),
                self.seen.info.replication()
            );
            self.findings.push(Finding { subject: self.subject, severity: Severity::Fine, what, remedy: None });
        }
        self.findings
    }

    fn partitions(&mut self) {
        let (is, must) = (self.seen.info.partitions(), self.wanted.settings.partitions);
        if is == must {
            return;
        }
        let what =
            format!("has {is} partitions, must have {must}: a key's shard is its hash modulo that number, for life");
        let remedy = format!(
            "if all topics have {is}: kafka.partitions = {is}; else, while it is empty: kafka-topics.sh {} --delete \
             --topic {}, then suture topics apply",
            self.server(),
            self.subject
        );
        self.find(Severity::Wrong, what, Some(remedy));
    }

    /// With too few copies nothing is said of in-sync replicas that cannot be had: more copies mend that too.
    fn replication(&mut self) {
        let is = self.seen.info.replication();
        let must = if self.wanted.allow_single_broker { 1 } else { REPLICAS };
        if is < must {
            let what =
                format!("has {is} copies of each record, must have {must}: an acknowledged record could be lost");
            let remedy = match self.brokers.len() >= usize::from(must) {
                true => format!(
                    "kafka-reassign-partitions.sh {} --execute --reassignment-json-file /dev/stdin <<< '{}'",
                    self.server(),
                    self.reassignment(usize::from(must))
                ),
                false => format!("start {must} brokers; or, for a laboratory only, add --allow-single-broker"),
            };
            self.find(Severity::Wrong, what, Some(remedy));
            return;
        }
        if let Some(in_sync) = number(self.seen, "min.insync.replicas")
            && in_sync > i64::from(is)
        {
            let what = format!("min.insync.replicas is {in_sync} with {is} copies: nothing can be written");
            let remedy = self.set("min.insync.replicas", &(is.max(2) - 1).to_string());
            self.find(Severity::Wrong, what, Some(remedy));
        }
    }

    fn setting(&mut self, setting: &Setting) {
        let Setting { name, value: must, rule } = setting;
        let Some(is) = self.seen.settings.get(*name) else {
            self.find(Severity::Advice, format!("{name} cannot be checked: the brokers do not tell it"), None);
            return;
        };
        let mend = Some(self.set(name, must));
        match rule {
            Rule::Exactly(_) | Rule::Advice if is == must => {}
            Rule::Exactly(why) => self.find(Severity::Wrong, format!("{name} is {is}, must be {must}: {why}"), mend),
            Rule::AtLeast(_) if at_least(is, must) => {}
            Rule::AtLeast(why) => {
                self.find(Severity::Wrong, format!("{name} is {is}, must be at least {must}: {why}"), mend);
            }
            Rule::Advice => self.find(Severity::Advice, format!("{name} is {is}, {must} is recommended"), mend),
        }
    }

    /// The declared 14 days suffice for the declared 7 of the requests; an operator may keep requests longer.
    fn votes_outlive(&mut self, requests_retention: Option<i64>) {
        let (Some(requests), Some(votes)) = (requests_retention, number(self.seen, "retention.ms")) else { return };
        let must = if requests < 0 { -1 } else { requests.saturating_add(SEVEN_DAYS_MS) };
        let declared = self.findings.iter().any(|finding| finding.what.starts_with("retention.ms"));
        if declared || at_least(&votes.to_string(), &must.to_string()) {
            return;
        }
        let what = format!(
            "retention.ms is {votes}, must be at least {must}: requests are kept for {requests}, and votes must outlive \
             them by 7 days"
        );
        let mend = Some(self.set("retention.ms", &must.to_string()));
        self.find(Severity::Wrong, what, mend);
    }

    fn find(&mut self, severity: Severity, what: String, remedy: Option<String>) {
        self.findings.push(Finding { subject: self.subject.clone(), severity, what, remedy });
    }

    fn set(&self, name: &str, value: &str) -> String {
        format!(
            "kafka-configs.sh {} --alter --entity-type topics --entity-name {} --add-config {name}={value}",
            self.server(),
            self.subject
        )
    }

    /// The copies there are, and as many more on the brokers that follow: what `kafka-reassign-partitions.sh` reads.
    fn reassignment(&self, replicas: usize) -> String {
        let of_partition = |(partition, held): (usize, &Vec<i32>)| {
            let in_turn = self.brokers.iter().cycle().skip(partition % self.brokers.len()).take(self.brokers.len());
            let all = held.iter().chain(in_turn.filter(|broker| !held.contains(broker)));
            let ids: Vec<String> = all.take(replicas.max(held.len())).map(ToString::to_string).collect();
            format!(r#"{{"topic":"{}","partition":{partition},"replicas":[{}]}}"#, self.subject, ids.join(","))
        };
        let partitions: Vec<String> = self.seen.info.replicas.iter().enumerate().map(of_partition).collect();
        format!(r#"{{"version":1,"partitions":[{}]}}"#, partitions.join(","))
    }

    /// How Kafka's tools reach the cluster.
    fn server(&self) -> String {
        let settings = self.wanted.settings;
        let secured = settings.properties.contains_key("security.protocol");
        let credentials = if secured { " --command-config CLIENT.properties" } else { "" };
        format!("--bootstrap-server {}{credentials}", settings.bootstrap)
    }
}

/// Numbers, where -1 is endless.
fn at_least(is: &str, must: &str) -> bool {
    match (is.parse::<i64>(), must.parse::<i64>()) {
        (Ok(-1), Ok(_)) => true,
        (Ok(_), Ok(-1)) => false,
        (Ok(is), Ok(must)) => is >= must,
        _ => false,
    }
}

fn number(seen: &Seen, name: &str) -> Option<i64> {
    seen.settings.get(name)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> KafkaSettings {
        KafkaSettings::new("broker:9092", "suture".parse().unwrap())
    }

    fn participants() -> Vec<Participant> {
        vec!["insurer".parse().unwrap()]
    }

    /// A cluster as `apply` makes it.
    fn cluster(settings: &KafkaSettings, replicas: u16) -> BTreeMap<String, Seen> {
        let seen = |topic: &Topic| Seen {
            info: TopicInfo { replicas: vec![(1..=i32::from(replicas)).collect(); usize::from(settings.partitions)] },
            settings: topic.settings(replicas.into()).into_iter().map(|s| (s.name.to_string(), s.value)).collect(),
        };
        Topic::all(&participants()).iter().map(|topic| (topic.name(&settings.prefix), seen(topic))).collect()
    }

    fn findings(seen: &BTreeMap<String, Seen>, brokers: i32, allow_single_broker: bool) -> Vec<Finding> {
        let settings = settings();
        let wanted = Wanted { settings: &settings, participants: &participants(), allow_single_broker };
        compare(wanted, &(1..=brokers).collect::<Vec<_>>(), seen)
    }

    /// The lines that are not fine after one change to one topic.
    fn after(topic: &str, change: impl FnOnce(&mut Seen)) -> Vec<String> {
        let mut seen = cluster(&settings(), 3);
        change(seen.get_mut(topic).unwrap());
        let findings = findings(&seen, 3, false);
        findings.iter().filter(|f| f.severity != Severity::Fine).map(ToString::to_string).collect()
    }

    fn after_setting(topic: &str, name: &str, value: &str) -> Vec<String> {
        after(topic, |seen| drop(seen.settings.insert(name.to_string(), value.to_string())))
    }

    #[test]
    fn what_apply_makes_is_fine() {
        let fine = findings(&cluster(&settings(), 3), 3, false);
        assert!(fine.iter().all(|finding| finding.severity == Severity::Fine), "{fine:#?}");
        assert_eq!(fine.len(), Topic::all(&participants()).len());
        assert!(is_safe(&findings(&cluster(&settings(), 1), 1, true)));
    }

    #[test]
    fn nothing_there_is_missing_and_too_few_brokers_are_wrong() {
        let empty = BTreeMap::new();
        let all = findings(&empty, 3, false);
        assert!(all.iter().all(|finding| finding.severity == Severity::Missing) && !is_safe(&all));
        assert_eq!(
            findings(&empty, 1, false)[0].to_string(),
            "WRONG   cluster: has 1 broker(s); 3 copies of each record need 3; mend: start more brokers, or, for a \
             laboratory only, add --allow-single-broker"
        );
        assert!(findings(&empty, 1, true).iter().all(|finding| finding.severity == Severity::Missing));
    }

    #[test]
    fn each_deviation_is_one_line_with_reason_and_command() {
        let configs = "kafka-configs.sh --bootstrap-server broker:9092 --alter --entity-type topics --entity-name";
        assert_eq!(
            after_setting("suture.votes.insurer", "cleanup.policy", "compact"),
            [format!(
                "WRONG   suture.votes.insurer: cleanup.policy is compact, must be delete: a compacted votes topic keeps \
                 the last vote, and the first one counts; mend: {configs} suture.votes.insurer --add-config \
                 cleanup.policy=delete"
            )]
        );
        assert_eq!(
            after_setting("suture.decisions", "cleanup.policy", "delete"),
            [format!(
                "WRONG   suture.decisions: cleanup.policy is delete, must be compact: a decision must outlive every \
                 participant's absence; mend: {configs} suture.decisions --add-config cleanup.policy=compact"
            )]
        );
        assert_eq!(
            after("suture.prepare.insurer", |seen| seen.info.replicas.truncate(6)),
            ["WRONG   suture.prepare.insurer: has 6 partitions, must have 12: a key's shard is its hash modulo that \
              number, for life; mend: if all topics have 6: kafka.partitions = 6; else, while it is empty: \
              kafka-topics.sh --bootstrap-server broker:9092 --delete --topic suture.prepare.insurer, then suture \
              topics apply"]
        );
        let lines = after("suture.requests", |seen| {
            seen.info.replicas.iter_mut().enumerate().for_each(|(index, held)| *held = vec![held[index % 2]]);
        });
        assert_eq!(lines.len(), 1, "more copies mend both: {lines:#?}");
        let reassigned = r#"{"version":1,"partitions":[{"topic":"suture.requests","partition":0,"replicas":[1,2,3]},{"topic":"suture.requests","partition":1,"replicas":[2,3,1]},"#;
        assert!(lines[0].contains("has 1 copies") && lines[0].contains(reassigned), "{lines:#?}");
        let lines = after_setting("suture.requests", "min.insync.replicas", "4");
        assert_eq!(lines.len(), 1, "in-sync replicas that cannot be had: {lines:#?}");
        assert!(lines[0].contains("nothing can be written"), "{lines:#?}");
    }

    #[test]
    fn every_strict_setting_is_held_to() {
        for (topic, name, value, severity) in [
            ("suture.requests", "cleanup.policy", "compact,delete", "WRONG"),
            ("suture.requests", "retention.ms", "1000", "WRONG"),
            ("suture.requests", "retention.bytes", "1000000", "WRONG"),
            ("suture.requests", "min.insync.replicas", "1", "WRONG"),
            ("suture.requests", "unclean.leader.election.enable", "true", "WRONG"),
            ("suture.requests", "message.timestamp.type", "CreateTime", "advice"),
            ("suture.outcomes", "retention.ms", "1000", "advice"),
            ("suture.decisions", "segment.ms", "1000", "advice"),
            ("suture.votes.insurer", "retention.ms", "604800000", "WRONG"),
        ] {
            let lines = after_setting(topic, name, value);
            assert_eq!(lines.len(), 1, "{lines:#?}");
            assert!(lines[0].starts_with(severity) && lines[0].contains(&format!("{name} is {value}")), "{lines:#?}");
        }
        for (topic, name, value) in [
            ("suture.votes.insurer", "retention.ms", "-1"),
            ("suture.votes.insurer", "retention.ms", "2000000000"),
            ("suture.requests", "min.insync.replicas", "3"),
        ] {
            assert_eq!(after_setting(topic, name, value), [""; 0]);
        }
    }

    #[test]
    fn votes_outlive_requests_that_are_kept_longer_than_declared() {
        let lines = after_setting("suture.requests", "retention.ms", "2592000000");
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert!(
            lines[0].contains("suture.votes.insurer") && lines[0].contains("retention.ms=3196800000"),
            "{lines:#?}"
        );
        let lines = after_setting("suture.requests", "retention.ms", "-1");
        assert!(lines[0].contains("retention.ms=-1"), "{lines:#?}");
    }

    #[test]
    fn what_the_brokers_do_not_tell_is_said() {
        let lines = after("suture.requests", |seen| drop(seen.settings.remove("unclean.leader.election.enable")));
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("advice") && lines[0].contains("cannot be checked"), "{lines:#?}");
    }
}
