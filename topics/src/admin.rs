//! `suture topics plan | apply | check` against a real cluster: asks, lets [`crate::plan`] compare, creates what is missing.
//!
//! Nothing that exists is ever altered or deleted, and nothing is created while anything is wrong: a half-right set of
//! topics would only invite the first start. All calls block, each for some milliseconds to seconds.
//!
//! Left out: the embedded broker (it has no admin; it creates its topics itself), ACLs, and upstream topics but for [`create_upstream`].

use std::collections::BTreeMap;
use std::future::Future;
use std::thread;
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, NewTopic, OwnedResourceSpecifier, ResourceSpecifier, TopicReplication,
};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use suture_contract::topic_map::Topic;

use crate::failure::KafkaFailure;
use crate::ffi::Quiet;
use crate::plan::{Finding, Seen, Severity, Wanted, compare, replicas_to_create};
use crate::probe::Probe;
use crate::settings::KafkaSettings;

/// How long one answer of the controller may take.
const ANSWER: Duration = Duration::from_secs(30);

/// What the controller has made reaches the brokers a moment later: so often is looked, this far apart, before giving up.
const LOOKS_FOR_TOPICS: u32 = 300;
const LOOKS_FOR_SETTINGS: u32 = 50;
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// What is there, what is missing, what is wrong. Changes nothing.
pub fn plan(wanted: Wanted<'_>) -> Result<Vec<Finding>, KafkaFailure> {
    let probe = Probe::start(wanted.settings)?;
    let (brokers, seen) = look(wanted, &probe)?;
    Ok(compare(wanted, &brokers, &seen))
}

/// Creates what is missing, unless something is wrong. Gives the findings as they are afterwards.
pub fn apply(wanted: Wanted<'_>) -> Result<Vec<Finding>, KafkaFailure> {
    let probe = Probe::start(wanted.settings)?;
    let (brokers, seen) = look(wanted, &probe)?;
    let findings = compare(wanted, &brokers, &seen);
    if findings.iter().any(|finding| finding.severity == Severity::Wrong) {
        return Ok(findings);
    }
    let absent = |topic: &Topic| !seen.contains_key(&topic.name(&wanted.settings.prefix));
    let missing: Vec<Topic> = Topic::all(wanted.participants).into_iter().filter(absent).collect();
    if missing.is_empty() {
        return Ok(findings);
    }
    create(wanted, replicas_to_create(wanted, brokers.len()), &missing)?;
    for _ in 0..LOOKS_FOR_TOPICS {
        let (brokers, seen) = look(wanted, &probe)?;
        let findings = compare(wanted, &brokers, &seen);
        if findings.iter().all(|finding| finding.severity != Severity::Missing) {
            return Ok(findings);
        }
        thread::sleep(BETWEEN_LOOKS);
    }
    Err(KafkaFailure::Again("creating topics: they do not appear on the brokers".to_string()))
}

/// The brokers, and our topics as they are. A broker that has not heard of a new topic yet tells no settings of it, like one
/// that may not: only the first passes.
fn look(wanted: Wanted<'_>, probe: &Probe) -> Result<(Vec<i32>, BTreeMap<String, Seen>), KafkaFailure> {
    let brokers = probe.brokers()?;
    let mut untold = String::new();
    for _ in 0..LOOKS_FOR_SETTINGS {
        let infos = probe.topics()?;
        let names: Vec<String> = Topic::all(wanted.participants)
            .iter()
            .map(|topic| topic.name(&wanted.settings.prefix))
            .filter(|name| infos.contains_key(name))
            .collect();
        let mut told = describe(wanted, &names)?;
        let mut seen = BTreeMap::new();
        for name in &names {
            if let (Some(info), Some(settings)) = (infos.get(name), told.remove(name)) {
                seen.insert(name.clone(), Seen { info: info.clone(), settings });
            }
        }
        match names.into_iter().find(|name| !seen.contains_key(name)) {
            None => return Ok((brokers, seen)),
            Some(name) => untold = name,
        }
        thread::sleep(BETWEEN_LOOKS);
    }
    let said =
        format!("the brokers do not tell the settings of {untold}: the right DESCRIBE_CONFIGS on topics is needed");
    Err(KafkaFailure::Fatal(said))
}

/// The settings of these topics, as far as they are told: rdkafka drops a topic's own error, and leaves it without any.
fn describe(wanted: Wanted<'_>, names: &[String]) -> Result<BTreeMap<String, BTreeMap<String, String>>, KafkaFailure> {
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    let doing = "asking for the topics' settings";
    let admin = client(wanted.settings)?;
    let specifiers: Vec<ResourceSpecifier<'_>> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
    let described = on_own_thread(|| admin.describe_configs(&specifiers, &options()))?
        .map_err(|error| KafkaFailure::of(doing, &error))?;
    let mut settings = BTreeMap::new();
    for answer in described {
        let answer = answer.map_err(|code| KafkaFailure::of_code(doing, code))?;
        if let OwnedResourceSpecifier::Topic(name) = answer.specifier
            && !answer.entries.is_empty()
        {
            let told = answer.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?)));
            settings.insert(name, told.collect());
        }
    }
    Ok(settings)
}

fn create(wanted: Wanted<'_>, replicas: u16, missing: &[Topic]) -> Result<(), KafkaFailure> {
    let admin = client(wanted.settings)?;
    let names: Vec<String> = missing.iter().map(|topic| topic.name(&wanted.settings.prefix)).collect();
    let settings: Vec<_> = missing.iter().map(|topic| topic.settings(i32::from(replicas))).collect();
    let mut topics = Vec::new();
    for (name, settings) in names.iter().zip(&settings) {
        let (partitions, replicas) = (i32::from(wanted.settings.partitions), i32::from(replicas));
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replicas));
        topics.push(settings.iter().fold(topic, |topic, setting| topic.set(setting.name, &setting.value)));
    }
    let results = on_own_thread(|| admin.create_topics(&topics, &options()))?
        .map_err(|error| KafkaFailure::of("creating topics", &error))?;
    for result in results {
        match result {
            // Somebody else's `apply` at the same time: the comparison afterwards judges what he made.
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => return Err(KafkaFailure::Fatal(format!("creating topic {name}: {code}"))),
        }
    }
    Ok(())
}

/// Creates an upstream topic, where nobody else has: for demonstrations and tests. The broker's defaults hold.
pub fn create_upstream(settings: &KafkaSettings, name: &str, partitions: u16) -> Result<(), KafkaFailure> {
    let probe = Probe::start(settings)?;
    let admin = client(settings)?;
    let topic = NewTopic::new(name, i32::from(partitions), TopicReplication::Fixed(-1));
    let results = on_own_thread(|| admin.create_topics([&topic], &options()))?
        .map_err(|error| KafkaFailure::of("creating topics", &error))?;
    for result in results {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => return Err(KafkaFailure::Fatal(format!("creating topic {name}: {code}"))),
        }
    }
    for _ in 0..LOOKS_FOR_TOPICS {
        if probe.topics()?.contains_key(name) {
            return Ok(());
        }
        thread::sleep(BETWEEN_LOOKS);
    }
    Err(KafkaFailure::Again(format!("creating topic {name}: it does not appear on the brokers")))
}

fn client(settings: &KafkaSettings) -> Result<AdminClient<Quiet>, KafkaFailure> {
    AdminClient::from_config_and_context(&settings.admin()?, Quiet)
        .map_err(|error| KafkaFailure::of("starting the admin client", &error))
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ANSWER)).operation_timeout(Some(ANSWER))
}

/// rdkafka's admin is asynchronous and our callers are not, or are inside a tokio runtime, where another cannot run.
fn on_own_thread<T, F>(ask: impl FnOnce() -> F + Send) -> Result<Result<T, KafkaError>, KafkaFailure>
where
    T: Send,
    F: Future<Output = Result<T, KafkaError>>,
{
    let failed = |what: &str| KafkaFailure::Again(format!("asking the controller: {what}"));
    let answer = thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|e| failed(&e.to_string()))?;
            Ok(runtime.block_on(ask()))
        });
        asking.join()
    });
    answer.unwrap_or_else(|_| Err(failed("its thread panicked")))
}
