//! The operator: a person who hears of incidents, and settles those that hands have caused as `docs/operations.md` asks him to.
//!
//! He has the product's own `suture participant NAME lost` and `resolve`, without their command line, and SQL for the business
//! rows. Where nobody's hand explains an incident he does nothing: the run is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use suture_contract::ids::Txid;
use suture_contract::messages::{IncidentKind, Settled};
use suture_participants::incidents::{self, Listed, Refused, Said};
use suture_participants::simulated::{SimulatedDatabase, SimulatedServer};
use suture_participants_core::settle::Unsettled;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Between two looks of his.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// So often he hears that somebody holds a row before he takes back what he made.
const TRIES: u32 = 3;

/// What a branch would do to the business rows.
#[derive(Debug, Clone)]
pub struct Effect {
    /// From where.
    pub account: String,
    /// How much.
    pub amount: i64,
    /// What it is counted by.
    pub token: String,
}

/// What hands have done to the branches of one participant.
#[derive(Debug, Default)]
pub struct Hands {
    /// Who was ended while he was in doubt: committed or not, or first one and then the other.
    pub ended: BTreeMap<Txid, BTreeSet<bool>>,
    /// What was said about whom, or is just being said.
    pub said: BTreeMap<Txid, Settled>,
    /// Whose effect was made by hand, or not to be made.
    made: BTreeMap<Txid, bool>,
    tries: BTreeMap<Txid, u32>,
}

impl Hands {
    /// Whether a branch was ended like this.
    pub fn have(&self, txid: &Txid, is_commit: bool) -> bool {
        self.ended.get(txid).is_some_and(|ended| ended.contains(&is_commit))
    }
}

/// He, at one participant.
pub struct Operator {
    hands: Arc<Mutex<Hands>>,
    database: SimulatedDatabase,
    looks_at: Instant,
    look: Option<JoinHandle<()>>,
}

impl Operator {
    /// Has nothing to do yet.
    pub fn new(database: SimulatedDatabase) -> Self {
        Self { hands: Arc::default(), database, looks_at: Instant::now(), look: None }
    }

    /// What was done.
    pub fn hands(&self) -> MutexGuard<'_, Hands> {
        lock(&self.hands)
    }

    /// Somebody ends a branch, if there is one. He is not asked.
    pub fn end_branch(&self, is_commit: bool) -> Option<Txid> {
        let txid = self.database.finish_by_hand(is_commit)?;
        self.hands().ended.entry(txid).or_default().insert(is_commit);
        Some(txid)
    }

    /// Looks, if it is time and somebody's hands were here.
    pub fn look(&mut self, server: impl FnOnce() -> Option<SimulatedServer>, effect: impl Fn(&Txid) -> Option<Effect>) {
        let is_busy = self.look.as_ref().is_some_and(|look| !look.is_finished());
        if is_busy || Instant::now() < self.looks_at || self.hands().ended.is_empty() {
            return;
        }
        self.looks_at = Instant::now() + LOOK_EVERY;
        let ended: Vec<Txid> = self.hands().ended.keys().copied().collect();
        let effects = ended.iter().filter_map(|txid| Some((*txid, effect(txid)?))).collect();
        let Some(server) = server() else { return };
        let (hands, database) = (Arc::clone(&self.hands), self.database.clone());
        self.look = Some(tokio::spawn(settle_all(server, database, hands, effects)));
    }
}

fn lock(hands: &Mutex<Hands>) -> MutexGuard<'_, Hands> {
    hands.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Everything that waits for him, as far as hands explain it. What a database does not answer, or somebody holds, he does again
/// when he looks next.
async fn settle_all(
    server: SimulatedServer,
    database: SimulatedDatabase,
    hands: Arc<Mutex<Hands>>,
    effects: BTreeMap<Txid, Effect>,
) {
    let Ok(listed) = incidents::list(&server).await else { return };
    for incident in listed.into_iter().filter(Listed::is_open).map(|listed| listed.incident) {
        let Some((txid, effect)) = incident.txid.and_then(|txid| Some((txid, effects.get(&txid)?))) else { continue };
        let said = match incident.what {
            IncidentKind::Lost if lock(&hands).have(&txid, false) => make(&database, &hands, txid, effect),
            IncidentKind::Contradiction if lock(&hands).have(&txid, true) => undo(&database, &hands, txid, effect),
            _ => continue,
        };
        lock(&hands).said.insert(txid, said);
        let because = Said::new("maria", "somebody tidied up").expect("one line each");
        match incidents::resolve(&server, txid, said, because).await {
            Ok(_) | Err(Refused::Already { .. } | Refused::Unavailable(_)) => {}
            Err(refused) if said == Settled::Committed => take_back(&database, &hands, txid, effect, &refused),
            Err(_) => {}
        }
    }
}

/// A commit that is lost: mostly its effect is made, if that is still possible.
fn make(database: &SimulatedDatabase, hands: &Mutex<Hands>, txid: Txid, effect: &Effect) -> Settled {
    let mut hands = lock(hands);
    let is_made = *hands.made.entry(txid).or_insert_with(|| {
        let wants = !txid.offset.is_multiple_of(3);
        wants && database.spend_by_hand(&effect.account, effect.amount, &effect.token)
    });
    if is_made { Settled::Committed } else { Settled::Abandoned }
}

/// What nobody else has is undone, once.
fn undo(database: &SimulatedDatabase, hands: &Mutex<Hands>, txid: Txid, effect: &Effect) -> Settled {
    if lock(hands).made.insert(txid, false) != Some(false) {
        database.undo_by_hand(&effect.account, effect.amount, &effect.token);
    }
    Settled::Abandoned
}

/// It cannot stand there as committed: so its effect must not either.
fn take_back(database: &SimulatedDatabase, hands: &Mutex<Hands>, txid: Txid, effect: &Effect, refused: &Refused) {
    let mut hands = lock(hands);
    let tries = hands.tries.entry(txid).or_default();
    *tries += 1;
    if matches!(refused, Refused::Unsettled { why: Unsettled::Held, .. }) && *tries < TRIES {
        return;
    }
    hands.made.insert(txid, false);
    database.undo_by_hand(&effect.account, effect.amount, &effect.token);
}
