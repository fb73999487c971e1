//! `suture tx retry`: an aborted transaction is asked for again, by a person who says why.
//!
//! The request is read back and appended under the same key with the next attempt's number; all else stays, so the ledgers
//! see the same thing again (`docs/decisions/0010`). Who asked and why stands in the record's headers, which `suture tx
//! show` prints.
//!
//! What the logs hold of its business key: requests from the coordinator's position on (below it each has its outcome) and
//! all outcomes of the shard. [`by_hand`] judges. Nothing of the payload is ever printed.

use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail};
use suture_contract::codec::{self, Message, encode};
use suture_contract::ids::{Attempt, Origin, Txid};
use suture_contract::messages::{Outcome, Request};
use suture_contract::remark::Remark;
use suture_contract::topic_map::{Topic, coordinator_group};
use suture_coordinator_core::redrive::by_hand;
use suture_topics::acks::GroupOffsets;
use suture_topics::outbox::{Failure, Outbox};

use super::{Found, as_request};
use crate::logs::{Logs, value};
use crate::settings::Settings;
use crate::{ConfigArg, user};

/// Longer than the producer itself tries.
const REPORT: Duration = Duration::from_secs(60);

/// Arguments of `suture tx retry`.
#[derive(clap::Args)]
pub struct RetryArgs {
    /// The txid of the aborted transaction (k3f9q-3-1042).
    txid: Txid,
    /// Why it may succeed now, for whoever asks later: one line, and nothing about the patient.
    #[arg(long, value_name = "TEXT")]
    because: String,
    /// Who asks; the user's name, unless given.
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
    #[command(flatten)]
    config: ConfigArg,
}

/// Asks again, or says why not.
pub fn run(args: &RetryArgs) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(&args.config.config)?;
    let who = match &args.who {
        Some(who) => who.clone(),
        None => user::name()?,
    };
    let remark = Remark::new(args.txid, &who, &args.because).context("--who and --because")?;
    let mut logs = Logs::open(&settings.kafka, "tx")?;
    let found = logs.readable_request(args.txid)?;
    // In this order: what ends meanwhile is seen in both.
    let requests = logs.requests_like(&found)?;
    let outcomes = logs.outcomes_like(&found)?;
    let attempt = by_hand(args.txid, &requests, &outcomes)?;
    let next = logs.append_again(found, attempt, &remark)?;
    println!("asked for again as {next}, attempt {}; see `suture tx show {next}`", attempt.number());
    Ok(ExitCode::SUCCESS)
}

impl Logs {
    /// The request of a txid, or why there is none.
    fn readable_request(&mut self, txid: Txid) -> anyhow::Result<Found> {
        self.is_of_this_topic(txid)?;
        if txid.shard.0 >= self.kafka.partitions {
            bail!("{txid}: there is no such transaction, the requests topic has {} shards", self.kafka.partitions);
        }
        let (start, _) = self.probe.watermarks(&self.name(&Topic::Requests), txid.shard.partition())?;
        if txid.offset < start {
            bail!("{txid}: its request has left the requests topic by age; feed the event again upstream");
        }
        self.request(txid)?.with_context(|| format!("{txid}: there is no such transaction in the requests topic"))
    }

    /// The requests of the same business key, all that may be open among them.
    fn requests_like(&mut self, found: &Found) -> anyhow::Result<Vec<(Txid, Attempt)>> {
        let (shard, topic) = (found.txid.shard, self.name(&Topic::Requests));
        let group = coordinator_group(&self.kafka.prefix);
        let position = GroupOffsets::new(&self.kafka).committed(&group, &[(&topic, shard.partition())])?;
        let from = position.into_iter().flatten().next().map_or(0, |committed| committed.offset);
        let (log, mut alike) = (self.log, Vec::new());
        self.read(&Topic::Requests, shard, from, |record| {
            let other = as_request(log, record);
            alike.extend(other.filter(|other| other.request.business_key == found.request.business_key));
            true
        })?;
        let mut requests = Vec::new();
        for Found { txid, request, .. } in alike {
            // What the coordinator rejected (misrouted, say) is no transaction, and has no end.
            let origin = Origin { topic: topic.clone(), partition: shard.partition(), offset: txid.offset as i64 };
            if self.rejection(&origin)?.is_none() {
                requests.push((txid, request.attempt));
            }
        }
        Ok(requests)
    }

    /// All outcomes of the same business key.
    fn outcomes_like(&mut self, found: &Found) -> anyhow::Result<Vec<Outcome>> {
        let key = found.request.business_key.as_str().as_bytes();
        let mut outcomes = Vec::new();
        self.read(&Topic::Outcomes, found.txid.shard, 0, |record| {
            if record.key.as_deref() == Some(key) {
                outcomes.extend(codec::decode::<Outcome>(value(record)).ok());
            }
            true
        })?;
        Ok(outcomes)
    }

    /// Appends the same request as that attempt and gives its name.
    fn append_again(&self, found: Found, attempt: Attempt, remark: &Remark) -> anyhow::Result<Txid> {
        let Found { txid, key, traceparent, request, .. } = found;
        let request = Request { attempt, ..request };
        let (tell, reports) = mpsc::channel();
        let outbox = Outbox::start(&self.kafka, "tx-retry", move |delivery| drop(tell.send(delivery)))?;
        let (topic, partition, value) = (self.name(&Topic::Requests), txid.shard.partition(), encode(&request));
        let trace = traceparent.as_deref();
        outbox.append_remarked(&topic, partition, &key, Some(&value), Request::TYPE, trace, Some(remark), 0)?;
        match reports.recv_timeout(REPORT).context("no report came")?.result {
            Ok(offset) => Ok(Txid { offset, ..txid }),
            Err(failure @ Failure::Again(_)) => {
                bail!("{topic}: {failure}; it may be there all the same, and asking again says so: do that")
            }
            Err(failure) => bail!("{topic}: {failure}; check that you may write to it"),
        }
    }
}
