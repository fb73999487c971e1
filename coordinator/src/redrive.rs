//! The service that drives again: aborts whose reasons may pass by themselves are asked for again as the next attempt.
//!
//! ```text
//!   suture.outcomes -> Consumer -> core::redrive (PURE) -- due --> Lookup: the request read back by its txid
//!        ^                                                             | the same, with the next attempt's number
//!        | the group's offset: the lowest outcome that waits           v
//!        '-------------------------- acknowledged --------------- suture.requests, the same key and partition
//! ```
//!
//! It runs beside ingest, with a group of its own, and remembers nothing: after a crash what was not asked for is read
//! again. Asking twice for one attempt is harmless, the ledgers let one through; see `docs/decisions/0010`.
//!
//! Each wait is a value, and one timer sleeps until the earliest. What waits is names; the request is read when it is due.
//!
//! Left out: a request that cannot be read back (it left its topic, or the log lost it) is said and counted, and is a
//! person's; so is what was asked for as often as its rule says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use suture_contract::codec::{self, Message, OutcomesRecord, Unreadable, encode};
use suture_contract::ids::{Origin, Shard};
use suture_contract::messages::{Outcome, Request};
use suture_contract::remark::{self, Remark};
use suture_contract::topic_map::{Topic, retry_group};
use suture_coordinator_core::ingest::rules::Rules;
use suture_coordinator_core::redrive::{Ask, Heard, Redrive};
use suture_topics::blocking;
use suture_topics::failure::{KafkaFailure, until_answered};
use suture_topics::probe::Probe;
use suture_topics::record::Record;
use suture_topics::settings::KafkaSettings;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::appends::{Append, Appends, Ended};
use crate::clients::DRAIN;
use crate::clock;
use crate::consumer::{Consumer, Happened, Place};
use crate::ingest::{IngestCounts, IngestFailure};
use crate::lookup::{Found, Lookup};

/// Most that is looked up or written at a time: each may be a request of 900 KB.
const MAX_UNDER_WAY: usize = 64;
/// How often offsets are committed and failed appends are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Who asks, in the headers of what is asked for.
const WHO: &str = "ingest";

/// Runs until `shutdown` turns true or its sender is dropped.
pub(crate) async fn run(
    kafka: KafkaSettings,
    rules: Arc<Rules>,
    counts: Arc<IngestCounts>,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), IngestFailure> {
    let mut service = tokio::select! {
        started = Service::start(kafka, rules, counts) => started?,
        _ = shutdown.wait_for(|stop| *stop) => return Ok(()),
    };
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let deadline = service.next_deadline();
        tokio::select! {
            ended = service.appends.ended() => service.on_ended(ended?)?,
            found = service.lookup.next() => service.on_found(found?),
            happened = service.consumer.next(true) => happened?.into_iter().for_each(|event| service.on_event(event)),
            () = sleep_until(deadline) => {}
            _ = tick.tick() => service.on_tick(),
            _ = shutdown.wait_for(|stop| *stop) => break,
        }
        service.look_for_what_is_due();
    }
    service.drain().await
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

struct Service {
    kafka: KafkaSettings,
    rules: Arc<Rules>,
    counts: Arc<IngestCounts>,

    consumer: Consumer,
    lookup: Lookup,
    appends: Appends<Ask>,
    /// Of the shards that are ours.
    shards: BTreeMap<Shard, Tenure>,
    /// The core's time begins here.
    began: Instant,
}

/// One shard, for as long as it is ours.
struct Tenure {
    place: Place,
    redrive: Redrive,
    /// A later version has written here: it reads no further.
    is_stopped: bool,
}

impl Service {
    async fn start(kafka: KafkaSettings, rules: Arc<Rules>, counts: Arc<IngestCounts>) -> Result<Self, IngestFailure> {
        let probe = Arc::new(Probe::start(&kafka)?);
        let letters = {
            let (probe, requests) = (Arc::clone(&probe), Topic::Requests.name(&kafka.prefix));
            until_answered(move || probe.letters(&requests)).await?
        };
        let started = {
            let kafka = kafka.clone();
            blocking::spawn(move || -> Result<_, KafkaFailure> {
                let appends = Appends::start(&kafka, "retry")?;
                let lookup = Lookup::start(&kafka, &probe, letters)?;
                let outcomes = [Topic::Outcomes.name(&kafka.prefix)];
                Ok((appends, lookup, Consumer::start(&kafka, &probe, &retry_group(&kafka.prefix), &outcomes)?))
            })
        };
        let (appends, lookup, consumer) = started.await.map_err(|_| IngestFailure::ClientGone)??;
        info!("driving retryable aborts again");
        Ok(Self { kafka, rules, counts, consumer, lookup, appends, shards: BTreeMap::new(), began: clock::now() })
    }

    fn now(&self) -> Duration {
        clock::now() - self.began
    }

    /// How many more may be looked up.
    fn room(&self) -> usize {
        MAX_UNDER_WAY.saturating_sub(self.lookup.len() + self.appends.len())
    }

    fn next_deadline(&self) -> Option<Instant> {
        if self.room() == 0 {
            return None;
        }
        let earliest = self.shards.values().filter_map(|tenure| tenure.redrive.next_deadline()).min()?;
        Some(self.began + earliest)
    }

    // Events.

    fn on_event(&mut self, happened: Happened) {
        match happened {
            Happened::Begun { place, start, end } => {
                if let Some(shard) = Shard::of_partition(place.1) {
                    let tenure = Tenure { place, redrive: Redrive::new(start, end), is_stopped: false };
                    self.shards.insert(shard, tenure);
                }
            }
            Happened::Left(place) => {
                if let Some(shard) = Shard::of_partition(place.1) {
                    self.shards.remove(&shard);
                    self.lookup.forget(shard);
                }
            }
            Happened::Records(records) => records.iter().for_each(|record| self.on_record(record)),
            Happened::Revoked => self.consumer.commit_now(|place, next| position(&self.shards, place, next)),
        }
    }

    fn on_record(&mut self, record: &Record) {
        let now = self.now();
        let Some(tenure) = Shard::of_partition(record.partition).and_then(|shard| self.shards.get_mut(&shard)) else {
            return;
        };
        if tenure.is_stopped {
            return;
        }
        let outcome = match codec::decode_outcomes_record(record.value.as_deref().unwrap_or_default()) {
            Ok(OutcomesRecord::Outcome(outcome)) => Some(outcome),
            Ok(OutcomesRecord::Incident(_)) => None,
            Err(newer @ Unreadable::Newer { .. }) => {
                let (partition, offset) = (record.partition, record.offset);
                error!(partition, offset, %newer, "nothing of this shard is driven again: upgrade this ingest");
                tenure.is_stopped = true;
                return self.consumer.pause(&tenure.place, true);
            }
            Err(unreadable) => {
                let (partition, offset) = (record.partition, record.offset);
                warn!(partition, offset, %unreadable, "an outcome was passed over");
                None
            }
        };
        let heard = tenure.redrive.hear(&self.rules, record.offset, outcome.as_ref(), now);
        if tenure.redrive.is_full() {
            self.consumer.pause(&tenure.place, true);
        }
        let Some(Outcome { txid, attempt, .. }) = outcome else { return };
        match heard {
            Heard::Settled => {}
            Heard::Waits(pause) => debug!(%txid, ?pause, "waits to be asked for again"),
            Heard::UsedUp => {
                if self.counts.used_up.fetch_add(1, Ordering::Relaxed) == 0 {
                    let attempt = attempt.number();
                    warn!(%txid, attempt, "was asked for as often as its rule says: a person's; the summary counts more");
                }
            }
            Heard::NoRule => {
                if self.counts.no_rule.fetch_add(1, Ordering::Relaxed) == 0 {
                    warn!(%txid, "may be asked for again, and is of no rule of this ingest: a person's; the summary counts more");
                }
            }
        }
    }

    fn look_for_what_is_due(&mut self) {
        let now = self.now();
        for tenure in self.shards.values_mut() {
            let room = MAX_UNDER_WAY.saturating_sub(self.lookup.len() + self.appends.len());
            tenure.redrive.due(now, room).into_iter().for_each(|ask| self.lookup.want(ask));
            if !tenure.redrive.is_full() && !tenure.is_stopped {
                self.consumer.pause(&tenure.place, false);
            }
        }
    }

    fn on_found(&mut self, found: Vec<Found>) {
        for Found { ask, request } in found {
            let next =
                request.and_then(|(request, key, traceparent)| Ok((ask.next_attempt(request)?, key, traceparent)));
            match next {
                Ok((request, key, traceparent)) => {
                    let because = &ask.because[..ask.because.len().min(remark::MAX_BYTES)];
                    self.appends.send(Append {
                        topic: Topic::Requests.name(&self.kafka.prefix),
                        partition: ask.txid.shard.partition(),
                        key,
                        value: encode(&request),
                        kind: Request::TYPE,
                        traceparent,
                        remark: Remark::new(ask.txid, WHO, because).ok(),
                        about: ask,
                    });
                }
                Err(why) => {
                    self.counts.gone.fetch_add(1, Ordering::Relaxed);
                    error!(txid = %ask.txid, why, "cannot be asked for again: feed the event again upstream");
                    self.done(&ask);
                }
            }
        }
    }

    fn on_ended(&mut self, ended: Vec<Ended<Ask>>) -> Result<(), IngestFailure> {
        for ended in ended {
            match ended {
                Ended::Written(Append { about: ask, .. }) => {
                    self.counts.asked_again.fetch_add(1, Ordering::Relaxed);
                    debug!(txid = %ask.txid, attempt = ask.attempt.next().number(), because = ask.because, "asked for again");
                    self.done(&ask);
                }
                Ended::Refused(Append { about: ask, .. }, reason) => {
                    self.counts.gone.fetch_add(1, Ordering::Relaxed);
                    error!(txid = %ask.txid, reason, "the broker refuses the next attempt: feed the event again upstream");
                    self.done(&ask);
                }
                Ended::Denied(Append { about: ask, topic, partition, .. }, reason) => {
                    let offset = ask.txid.offset as i64;
                    let origin = Origin { topic: topic.clone(), partition, offset };
                    return Err(IngestFailure::Denied { origin, reason, topic });
                }
            }
        }
        Ok(())
    }

    /// It was asked for, or never can be.
    fn done(&mut self, ask: &Ask) {
        if let Some(tenure) = self.shards.get_mut(&ask.txid.shard) {
            tenure.redrive.done(&ask.business_key, ask.txid);
        }
    }

    fn on_tick(&mut self) {
        self.appends.on_tick();
        self.consumer.commit(|place, next| position(&self.shards, place, next));
        let waiting: usize = self.shards.values().map(|tenure| tenure.redrive.waiting()).sum();
        self.counts.waiting.store(waiting as u64, Ordering::Relaxed);
    }

    async fn drain(mut self) -> Result<(), IngestFailure> {
        let deadline = clock::now() + DRAIN;
        while self.appends.is_flying() {
            match tokio::time::timeout_at(deadline, self.appends.ended()).await {
                Ok(ended) => self.on_ended(ended?)?,
                Err(_) => break,
            }
        }
        self.consumer.commit_now(|place, next| position(&self.shards, place, next));
        let ended = self.consumer.end(deadline, self.appends.into_outbox());
        ended.await.map_err(|_| IngestFailure::ClientGone)
    }
}

/// Before it nothing waits.
fn position(shards: &BTreeMap<Shard, Tenure>, place: &Place, next: u64) -> u64 {
    let tenure = Shard::of_partition(place.1).and_then(|shard| shards.get(&shard));
    tenure.map_or(next, |tenure| tenure.redrive.position())
}
