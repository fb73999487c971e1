//! What a participant does now and then beside its messages.
//!
//! - **Inquiry**: a branch that has been in doubt for longer than `inquire_after` says its vote again, marked; see
//!   `suture_participants_core::doubts`. Whether the answer comes is the coordinator's business; nothing is ever aborted
//!   from here. In mode `xa` the ledger row is invisible and the list tells half of the hash: the whole is remembered
//!   of what this process has prepared, and read from the prepare topic of what was prepared before it.
//! - **Sweep**: a prepared branch whose ledger row says that it is over is rolled back after `sweep_after`, with the cautions of
//!   `suture_participants_core::leftovers`. What has no row is in doubt and never touched; what is not ours neither.
//!
//! The service ticks, awaits what was begun, and sends what is to be sent; only it knows which shards are live.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use suture_contract::ids::{Participant, RequestHash, Shard, Txid};
use suture_participants_core::doubts::{Ask, Doubts, Due, InDoubt};
use suture_participants_core::leftovers::Leftovers;
use suture_topics::scan::ScanFailure;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::clock::now;
use crate::config::UpkeepSettings;
use crate::resource::{Resource, Unavailable};
use crate::seek::Seeker;
use crate::take::blocking;

/// The database is looked into so often within the shortest time that something takes to be due.
const LOOKS: u32 = 4;

/// The state of it.
pub(crate) struct Upkeep {
    participant: Participant,
    seeker: Seeker,
    started: Instant,
    doubts: Doubts,
    leftovers: Leftovers,
    look_every: Duration,
    /// By our clock; `None` while there is a look.
    look_at: Option<Duration>,
    jobs: JoinSet<Found>,
}

/// What a job has found out.
pub(crate) enum Found {
    /// What stands in the database, by a look of this number; `None`: it does not answer.
    Looked(u64, Option<Looked>),
    /// What the prepares of these are about; `None`: Kafka does not answer.
    Hashes(Vec<Txid>, Option<Vec<(Txid, RequestHash)>>),
    /// So many branches were rolled back.
    Swept(usize),
}

/// What a look has found.
pub(crate) struct Looked {
    in_doubt: Vec<InDoubt>,
    over: Vec<Txid>,
    /// Where the decision logs of those shards end, looked up afterwards; none where Kafka does not say.
    decisions_ends: BTreeMap<Shard, u64>,
}

impl Upkeep {
    pub fn new(participant: Participant, settings: &UpkeepSettings, seeker: Seeker) -> Self {
        Self {
            participant,
            seeker,
            started: now(),
            doubts: Doubts::new(settings.inquire_after),
            leftovers: Leftovers::new(settings.sweep_after),
            look_every: settings.inquire_after.min(settings.sweep_after) / LOOKS,
            look_at: Some(Duration::ZERO),
            jobs: JoinSet::new(),
        }
    }

    fn now(&self) -> Duration {
        now() - self.started
    }

    /// A yes is durable.
    pub fn said_yes(&mut self, txid: Txid, hash: RequestHash) {
        self.doubts.said_yes(txid, hash, self.now());
    }

    /// A decision was carried out.
    pub fn ends(&mut self, txid: &Txid) {
        self.doubts.ends(txid);
    }

    /// For how long the oldest branch has been in doubt.
    pub fn oldest(&self) -> Duration {
        self.doubts.oldest(self.now()).unwrap_or_default()
    }

    /// Begins what is due.
    pub fn tick<R: Resource>(&mut self, resource: &Arc<R>) {
        if self.look_at.is_some_and(|at| at <= self.now()) {
            self.look_at = None;
            let (look, resource, seeker) = (self.doubts.look(), Arc::clone(resource), self.seeker.clone());
            self.jobs.spawn(async move { Found::Looked(look, look_into(&*resource, seeker).await.ok()) });
        }
    }

    /// The next end of something that was begun; `None`: nothing is under way.
    pub async fn next(&mut self) -> Option<Result<Found, JoinError>> {
        self.jobs.join_next().await
    }

    /// Answers who is to ask; `live`: our shards that are live, and up to where their decisions are applied.
    pub fn on_found<R: Resource>(&mut self, found: Found, resource: &Arc<R>, live: &BTreeMap<Shard, u64>) -> Vec<Ask> {
        match found {
            Found::Looked(look, looked) => {
                self.look_at = Some(self.now() + self.look_every);
                if let Some(Looked { in_doubt, over, decisions_ends }) = looked {
                    self.doubts.found(look, in_doubt, self.now());
                    self.leftovers.found(&over, &decisions_ends, self.now());
                    self.sweep(resource, live);
                }
            }
            Found::Swept(0) => {}
            Found::Swept(branches) => tracing::warn!(
                participant = %self.participant, branches,
                "prepared branches were rolled back that had come back although their ledger row says that they are over"
            ),
            Found::Hashes(txids, None) => {
                let now = self.now();
                txids.iter().for_each(|txid| self.doubts.seek_again(txid, now));
            }
            Found::Hashes(txids, Some(hashes)) => self.on_hashes(&txids, &hashes),
        }
        let Self { doubts, leftovers, .. } = self;
        let is_ours = |txid: &Txid| live.contains_key(&txid.shard) && !leftovers.contains(txid);
        let Due { ask, seek } = doubts.due(now() - self.started, is_ours);
        if !seek.is_empty() {
            let seeker = self.seeker.clone();
            self.jobs.spawn(async move {
                let sought = seek.clone();
                let found = blocking(move || seeker.seek(&sought)).await;
                Found::Hashes(seek, found.ok().and_then(told))
            });
        }
        self.tell(&ask);
        ask
    }

    fn sweep<R: Resource>(&mut self, resource: &Arc<R>, live: &BTreeMap<Shard, u64>) {
        let due = self.leftovers.due(self.now(), live);
        if !due.is_empty() {
            let resource = Arc::clone(resource);
            // What was not ended is found by the next look again.
            self.jobs.spawn(async move { Found::Swept(resource.sweep(due).await.unwrap_or_default()) });
        }
    }

    fn on_hashes(&mut self, txids: &[Txid], hashes: &[(Txid, RequestHash)]) {
        for txid in txids {
            let mut of_txid = hashes.iter().filter(|(of, _)| of == txid);
            if of_txid.any(|(_, hash)| self.doubts.learn(txid, *hash)) {
                continue;
            }
            let age_s = self.doubts.age(txid, self.now()).unwrap_or_default().as_secs();
            tracing::error!(
                participant = %self.participant, %txid, age_s,
                "a branch is in doubt, and its prepare is not in the log any more: nobody can be asked. Look for its decision \
                 with `suture tx show`, and finish it by hand as that says; without a decision leave it as it is"
            );
        }
    }

    /// One warning for all that ask now.
    fn tell(&self, ask: &[Ask]) {
        if let Some(Ask { txid, age, .. }) = ask.first() {
            let (age_s, asking) = (age.as_secs(), ask.len());
            tracing::warn!(
                participant = %self.participant, %txid, age_s, asking,
                "in doubt for too long, and asking for the decision: if it stays so, see what `suture tx show` says of this \
                 one (the oldest), and whether the coordinator runs"
            );
        }
    }
}

async fn look_into<R: Resource>(resource: &R, seeker: Seeker) -> Result<Looked, Unavailable> {
    let in_doubt = resource.in_doubt().await?;
    let over = resource.leftovers().await?;
    let shards: BTreeSet<Shard> = over.iter().map(|txid| txid.shard).collect();
    let decisions_ends = match shards.is_empty() {
        true => BTreeMap::new(),
        false => blocking(move || seeker.decisions_ends(&shards)).await.unwrap_or_default(),
    };
    Ok(Looked { in_doubt, over, decisions_ends })
}

fn told(found: Result<Vec<(Txid, RequestHash)>, ScanFailure>) -> Option<Vec<(Txid, RequestHash)>> {
    found.inspect_err(|failure| tracing::warn!(%failure, "prepares of branches in doubt are looked for again")).ok()
}
