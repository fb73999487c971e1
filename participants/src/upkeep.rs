//! What a participant does now and then beside its messages.
//!
//! - **Inquiry**: a branch that has been in doubt for longer than `inquire_after` says its vote again, marked; see
//!   `suture_participants_core::doubts`. Whether the answer comes is the coordinator's business; nothing is ever aborted
//!   from here. In mode `xa` the ledger row is invisible and the list tells half of the hash: the whole is remembered
//!   of what this process has prepared, and read from the prepare topic of what was prepared before it.
//! - **Sweep**: a prepared branch whose ledger row says that it is over is rolled back after `sweep_after`, with the cautions of
//!   `suture_participants_core::leftovers`. What has no row is in doubt and never touched; what is not ours neither.
//! - **Purge**: the ledger is walked from its first row to its last, a page at a time with a rest behind each, and finished rows
//!   go that have not changed for `purge_after`. What is decided and not acknowledged stays, with all above it.
//!
//! The service ticks, awaits what was begun, and sends what is to be sent; only it knows which shards are live.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use suture_contract::ids::{Participant, RequestHash, Shard, Txid};
use suture_participants_core::branch::State;
use suture_participants_core::doubts::{Ask, Doubts, Due, InDoubt};
use suture_participants_core::leftovers::Leftovers;
use suture_topics::scan::ScanFailure;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::clock::now;
use crate::config::UpkeepSettings;
use crate::resource::{Leftover, Page, Purged, Resource, Unavailable};
use crate::seek::Seeker;
use crate::take::blocking;

/// The database is looked into so often within the shortest time that something takes to be due.
const LOOKS: u32 = 4;

/// How many rows of the ledger are looked at in one local transaction, and the rest behind it.
const PAGE: usize = 1_000;
const REST: Duration = Duration::from_millis(100);

/// The rest behind a walk through the ledger: a part of the time after which rows go, and no more than an hour.
const WALKS: u32 = 100;
const LONGEST_REST: Duration = Duration::from_secs(3_600);

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
    /// Branches that are prepared, purged and told.
    strays: BTreeSet<Txid>,
    walk: Option<Walk>,
    jobs: JoinSet<Found>,
}

/// The way through the ledger.
struct Walk {
    purge_after: Duration,
    after: Option<Txid>,
    /// By our clock; `None` while there is a page.
    page_at: Option<Duration>,
    /// How many went since its beginning.
    rows: usize,
    /// Decisions that are carried out, by their place in the log, until they are acknowledged.
    unacknowledged: BTreeMap<(Shard, u64), Txid>,
}

/// How far the decisions of a live shard of ours are.
#[derive(Clone, Copy)]
pub(crate) struct Live {
    /// All below are durable here.
    pub applied: u64,
    /// The group's offset; `None`: not committed by us yet.
    pub acknowledged: Option<u64>,
}

/// What a job has found out.
pub(crate) enum Found {
    /// What stands in the database, by a look of this number; `None`: it does not answer.
    Looked(u64, Option<Looked>),
    /// What the prepares of these are about; `None`: Kafka does not answer.
    Hashes(Vec<Txid>, Option<Vec<(Txid, RequestHash)>>),
    /// So many branches were rolled back.
    Swept(usize),
    /// What became of a page of the ledger; `None`: the database does not answer.
    Purged(Option<Purged>),
}

/// What a look has found.
pub(crate) struct Looked {
    in_doubt: Vec<InDoubt>,
    leftovers: Vec<Leftover>,
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
            strays: BTreeSet::new(),
            walk: settings.purge_after.map(Walk::new),
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

    /// A decision was carried out, which stands there in its log.
    pub fn ends(&mut self, txid: &Txid, (shard, offset): (Shard, u64)) {
        self.doubts.ends(txid);
        if let Some(walk) = &mut self.walk {
            walk.unacknowledged.insert((shard, offset), *txid);
        }
    }

    /// A shard is somebody else's now: what was decided there is acknowledged when he commits.
    pub fn forget(&mut self, shard: Shard) {
        if let Some(walk) = &mut self.walk {
            walk.unacknowledged.retain(|(of, _), _| *of != shard);
        }
    }

    /// For how long the oldest branch has been in doubt.
    pub fn oldest(&self) -> Duration {
        self.doubts.oldest(self.now()).unwrap_or_default()
    }

    /// Begins what is due.
    pub fn tick<R: Resource>(&mut self, resource: &Arc<R>, live: &BTreeMap<Shard, Live>) {
        if self.look_at.is_some_and(|at| at <= self.now()) {
            self.look_at = None;
            let (look, resource, seeker) = (self.doubts.look(), Arc::clone(resource), self.seeker.clone());
            self.jobs.spawn(async move { Found::Looked(look, look_into(&*resource, seeker).await.ok()) });
        }
        let now = self.now();
        if let Some(page) = self.walk.as_mut().and_then(|walk| walk.page(now, live)) {
            let resource = Arc::clone(resource);
            self.jobs.spawn(async move { Found::Purged(resource.purge(page).await.ok()) });
        }
    }

    /// The next end of something that was begun; `None`: nothing is under way.
    pub async fn next(&mut self) -> Option<Result<Found, JoinError>> {
        self.jobs.join_next().await
    }

    /// Answers who is to ask; `live`: our shards that are live.
    pub fn on_found<R: Resource>(&mut self, found: Found, resource: &Arc<R>, live: &BTreeMap<Shard, Live>) -> Vec<Ask> {
        match found {
            Found::Looked(look, looked) => {
                self.look_at = Some(self.now() + self.look_every);
                if let Some(Looked { in_doubt, leftovers, decisions_ends }) = looked {
                    self.doubts.found(look, in_doubt, self.now());
                    let (purged, over): (Vec<_>, Vec<_>) =
                        leftovers.into_iter().partition(|leftover| leftover.state == State::Purged);
                    let over: Vec<Txid> = over.iter().map(|leftover| leftover.txid).collect();
                    self.leftovers.found(&over, &decisions_ends, self.now());
                    self.sweep(resource, live);
                    purged.iter().for_each(|leftover| self.tell_stray(&leftover.txid));
                }
            }
            Found::Purged(purged) => {
                let now = self.now();
                if let Some(rows) = self.walk.as_mut().and_then(|walk| walk.on_purged(purged, now)) {
                    tracing::info!(participant = %self.participant, rows, "finished ledger rows were purged");
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

    fn sweep<R: Resource>(&mut self, resource: &Arc<R>, live: &BTreeMap<Shard, Live>) {
        let due = self.leftovers.due(self.now(), |shard| live.get(&shard).map(|live| live.applied));
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

    /// It asks like any branch in doubt; more nobody knows. Told once.
    fn tell_stray(&mut self, txid: &Txid) {
        if self.strays.insert(*txid) {
            tracing::error!(
                participant = %self.participant, %txid,
                "a branch is prepared of a transaction that was finished and purged here: it is left as it is; see what \
                 `suture tx show` and the business rows say of it, and finish it by hand"
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

impl Walk {
    fn new(purge_after: Duration) -> Self {
        let unacknowledged = BTreeMap::new();
        Self { purge_after, after: None, page_at: Some(Duration::ZERO), rows: 0, unacknowledged }
    }

    /// The next page, if it is due.
    fn page(&mut self, now: Duration, live: &BTreeMap<Shard, Live>) -> Option<Page> {
        // Of a shard that is not live nothing goes; it may become live before all of this is acknowledged.
        let acknowledged = |shard: &Shard| live.get(shard).and_then(|live| live.acknowledged);
        self.unacknowledged.retain(|(shard, offset), _| acknowledged(shard).is_none_or(|below| *offset >= below));
        if self.page_at.is_none_or(|at| at > now) {
            return None;
        }
        self.page_at = None;
        // What the owner before us has decided is acknowledged with our first commit.
        let shards = live.iter().filter(|(_, live)| live.acknowledged.is_some()).map(|(shard, _)| *shard).collect();
        let unacknowledged = self.unacknowledged.values().copied().collect();
        Some(Page { after: self.after, rows: PAGE, older_than: self.purge_after, shards, unacknowledged })
    }

    /// Answers how many went in a walk that has ended, if any.
    fn on_purged(&mut self, purged: Option<Purged>, now: Duration) -> Option<usize> {
        let Some(Purged { rows, next }) = purged else {
            self.page_at = Some(now + REST * 10);
            return None;
        };
        self.rows += rows;
        self.after = next;
        if next.is_some() {
            self.page_at = Some(now + REST);
            return None;
        }
        self.page_at = Some(now + (self.purge_after / WALKS).clamp(REST, LONGEST_REST));
        Some(std::mem::take(&mut self.rows)).filter(|rows| *rows > 0)
    }
}

async fn look_into<R: Resource>(resource: &R, seeker: Seeker) -> Result<Looked, Unavailable> {
    let in_doubt = resource.in_doubt().await?;
    let leftovers = resource.leftovers().await?;
    let shards: BTreeSet<Shard> = leftovers.iter().map(|leftover| leftover.txid.shard).collect();
    let decisions_ends = match shards.is_empty() {
        true => BTreeMap::new(),
        false => blocking(move || seeker.decisions_ends(&shards)).await.unwrap_or_default(),
    };
    Ok(Looked { in_doubt, leftovers, decisions_ends })
}

fn told(found: Result<Vec<(Txid, RequestHash)>, ScanFailure>) -> Option<Vec<(Txid, RequestHash)>> {
    found.inspect_err(|failure| tracing::warn!(%failure, "prepares of branches in doubt are looked for again")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PURGE_AFTER: Duration = Duration::from_secs(1_000);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn txid(offset: u64) -> Txid {
        format!("k3f9q-3-{offset}").parse().unwrap()
    }

    fn live(acknowledged: Option<u64>) -> BTreeMap<Shard, Live> {
        [(Shard(3), Live { applied: 9, acknowledged })].into()
    }

    #[test]
    fn a_walk_goes_from_page_to_page_and_rests() {
        let mut walk = Walk::new(PURGE_AFTER);
        let page = walk.page(at(0), &live(Some(9))).unwrap();
        assert_eq!((page.after, page.older_than, page.shards), (None, PURGE_AFTER, [Shard(3)].into()));
        assert!(walk.page(at(9), &live(Some(9))).is_none(), "one at a time");
        assert_eq!(walk.on_purged(Some(Purged { rows: 2, next: Some(txid(5)) }), at(9)), None);
        assert!(walk.page(at(9), &live(Some(9))).is_none(), "it rests");
        assert_eq!(walk.page(at(10), &live(Some(9))).unwrap().after, Some(txid(5)));
        assert_eq!(walk.on_purged(None, at(10)), None);
        assert_eq!(walk.page(at(11), &live(Some(9))).unwrap().after, Some(txid(5)), "not answered: the same again");
        assert_eq!(walk.on_purged(Some(Purged { rows: 1, next: None }), at(11)), Some(3));
        assert!(walk.page(at(20), &live(Some(9))).is_none(), "it rests for longer");
        assert_eq!(walk.page(at(21), &live(Some(9))).unwrap().after, None);
    }

    #[test]
    fn what_is_not_acknowledged_is_named_and_what_was_never_is_not_ours_yet() {
        let mut walk = Walk::new(PURGE_AFTER);
        walk.unacknowledged.extend([((Shard(3), 7), txid(1)), ((Shard(3), 8), txid(2))]);
        assert!(walk.page(at(0), &BTreeMap::new()).unwrap().shards.is_empty(), "it catches up");
        walk.page_at = Some(at(0));
        let page = walk.page(at(0), &live(None)).unwrap();
        assert!(page.shards.is_empty());
        walk.page_at = Some(at(0));
        assert_eq!(walk.page(at(0), &live(Some(8))).unwrap().unacknowledged, [txid(2)]);
        walk.page_at = Some(at(0));
        assert!(walk.page(at(0), &live(Some(9))).unwrap().unacknowledged.is_empty());
    }
}
