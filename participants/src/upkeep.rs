//! What a participant does now and then beside its messages.
//!
//! - **Inquiry**: a branch that has been in doubt for longer than `inquire_after` says its vote again, marked; see
//!   `suture_participants_core::doubts`. Whether the answer comes is the coordinator's business; nothing is ever aborted
//!   from here. In mode `xa` the ledger row is invisible and the list tells half of the hash: the whole is remembered
//!   of what this process has prepared, and read from the prepare topic of what was prepared before it.
//!
//! The service ticks, awaits what was begun, and sends what is to be sent; only it knows which shards are live.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use suture_contract::ids::{Participant, RequestHash, Shard, Txid};
use suture_participants_core::doubts::{Ask, Doubts, Due, InDoubt};
use suture_topics::scan::ScanFailure;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::clock::now;
use crate::config::UpkeepSettings;
use crate::resource::Resource;
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
    look_every: Duration,
    /// By our clock; `None` while there is a look.
    look_at: Option<Duration>,
    jobs: JoinSet<Found>,
}

/// What a job has found out.
pub(crate) enum Found {
    /// What is in doubt, by a look of this number; `None`: the database does not answer.
    InDoubt(u64, Option<Vec<InDoubt>>),
    /// What the prepares of these are about; `None`: Kafka does not answer.
    Hashes(Vec<Txid>, Option<Vec<(Txid, RequestHash)>>),
}

impl Upkeep {
    pub fn new(participant: Participant, settings: &UpkeepSettings, seeker: Seeker) -> Self {
        Self {
            participant,
            seeker,
            started: now(),
            doubts: Doubts::new(settings.inquire_after),
            look_every: settings.inquire_after / LOOKS,
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
            let (look, resource) = (self.doubts.look(), Arc::clone(resource));
            self.jobs.spawn(async move { Found::InDoubt(look, resource.in_doubt().await.ok()) });
        }
    }

    /// The next end of something that was begun; `None`: nothing is under way.
    pub async fn next(&mut self) -> Option<Result<Found, JoinError>> {
        self.jobs.join_next().await
    }

    /// Answers who is to ask.
    pub fn on_found(&mut self, found: Found, live: &BTreeSet<Shard>) -> Vec<Ask> {
        match found {
            Found::InDoubt(look, in_doubt) => {
                self.look_at = Some(self.now() + self.look_every);
                if let Some(in_doubt) = in_doubt {
                    self.doubts.found(look, in_doubt, self.now());
                }
            }
            Found::Hashes(txids, None) => {
                let now = self.now();
                txids.iter().for_each(|txid| self.doubts.seek_again(txid, now));
            }
            Found::Hashes(txids, Some(hashes)) => self.on_hashes(&txids, &hashes),
        }
        let Due { ask, seek } = self.doubts.due(self.now(), |txid| live.contains(&txid.shard));
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

fn told(found: Result<Vec<(Txid, RequestHash)>, ScanFailure>) -> Option<Vec<(Txid, RequestHash)>> {
    found.inspect_err(|failure| tracing::warn!(%failure, "prepares of branches in doubt are looked for again")).ok()
}
