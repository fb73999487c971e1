//! Incidents: what a person must know of a participant, and how he settles it.
//!
//! | entry in `suture_audit` | what happened | the shard | settled by |
//! |---|---|---|---|
//! | `lost:<txid>` | a commit, and nothing here to commit | stops | `resolved:<txid>` |
//! | `contradiction:<txid>` | an abort of what is committed | stops | `undone:<txid>` |
//! | `other_hash:<place>` | a message about something else under a known txid | stops | `skipped:<place>` |
//! | `unreadable:<place>` | a record that must not be passed and cannot be obeyed | stops | `skipped:<place>` |
//! | `finished_by_hand:<txid>` | a branch in doubt is finished, and no decision was carried out | goes on | |
//!
//! A place is `<topic>/<letters>/<shard>/<offset>`: a topic that was made anew has other letters, and nothing of the old one is
//! passed there.
//!
//! - The row comes first, in the participant's own database; what a person says about a branch becomes its ledger row in the
//!   same local transaction. **Only the service tells the outcomes topic**, from the rows, at least once: so no command needs
//!   rights there, and no crash loses a word.
//! - A record that decides about a branch of ours is never passed: it is resolved.
//! - What a shard is past waits for nobody, whatever was noted of it: a later version has read it, or the branch was brought back.
//!   But a decision is obeyed only if the ledger agrees with it: a position that was moved by hand settles nothing.
//! - `resolved:<txid>` without an incident: a row was gone that nobody missed, or said otherwise ([`crate::forgotten`]).
//!
//! Left out: to pass more than one record at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use suture_contract::codec::{decode, encode};
use suture_contract::ids::{InvalidName, LogLetters, Origin, Participant, Shard, Txid};
use suture_contract::messages::{Decision, Incident, IncidentKind, Prepare, Settled, Verdict};
use suture_contract::remark::line;
use suture_participants_core::branch::{Event, State, step};
use suture_participants_core::marks::Marks;
use suture_participants_core::settle::{Unsettled, Word};
use time::OffsetDateTime;

use crate::forgotten::Forgotten;
use crate::points::{Act, around};
use crate::resource::{Entry, Noted, Position, Resolution, Resource, Unavailable, Which};

/// A record's place in one incarnation of its topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The topic's full name.
    pub topic: String,
    /// Which incarnation of it.
    pub letters: LogLetters,
    /// The partition.
    pub shard: Shard,
    /// The offset.
    pub offset: u64,
}

impl Place {
    fn origin(&self) -> Origin {
        Origin { topic: self.topic.clone(), partition: self.shard.partition(), offset: self.offset.cast_signed() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.topic, self.letters, self.shard, self.offset)
    }
}

impl FromStr for Place {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let read = || {
            let mut parts = text.rsplitn(4, '/');
            let (offset, shard, letters) = (parts.next()?, parts.next()?, parts.next()?);
            Some(Self {
                topic: parts.next()?.to_string(),
                letters: letters.parse().ok()?,
                shard: Shard(shard.parse().ok()?),
                offset: offset.parse().ok()?,
            })
        };
        read().ok_or(InvalidName { what: "place", rule: "<topic>/<letters>/<shard>/<offset>" })
    }
}

// ---- entries ---------------------------------------------------------------------------------------------------------

/// An incident of which nothing is known but what it is.
pub(crate) fn incident(participant: &Participant, what: IncidentKind) -> Incident {
    Incident {
        participant: participant.clone(),
        what,
        txid: None,
        business_key: None,
        attempt: None,
        hash: None,
        outcome: None,
        origin: None,
        code: None,
        settled: None,
        who: None,
        because: None,
    }
}

/// A record that must not be passed and cannot be obeyed.
pub(crate) fn unreadable(participant: &Participant, why: &str) -> Incident {
    Incident { code: why.parse().ok(), ..incident(participant, IncidentKind::Unreadable) }
}

/// What is known of a transaction by its decision.
pub(crate) fn about_decision(participant: &Participant, decision: &Decision) -> Incident {
    Incident {
        txid: Some(decision.txid),
        business_key: Some(decision.business_key.clone()),
        attempt: Some(decision.attempt),
        hash: Some(decision.hash),
        outcome: Some(decision.outcome),
        ..incident(participant, IncidentKind::Lost)
    }
}

/// What is known of a transaction by its prepare.
pub(crate) fn about_prepare(participant: &Participant, prepare: &Prepare) -> Incident {
    Incident {
        txid: Some(prepare.txid),
        business_key: Some(prepare.business_key.clone()),
        attempt: Some(prepare.attempt),
        hash: Some(prepare.hash),
        ..incident(participant, IncidentKind::OtherHash)
    }
}

/// The entry of an incident at a record.
pub(crate) fn entry_at(place: &Place, incident: Incident) -> Entry {
    let incident = Incident { origin: Some(place.origin()), ..incident };
    match (incident.what, incident.txid) {
        (IncidentKind::Lost | IncidentKind::Contradiction, Some(txid)) => entry_of(&txid, &incident),
        _ => entry_of(place, &incident),
    }
}

/// The entry of an incident under the name of what it is about.
pub(crate) fn entry_of(about: &impl fmt::Display, incident: &Incident) -> Entry {
    let name = format!("{}:{about}", incident.what.as_str());
    let key = incident.business_key.as_ref().map(ToString::to_string);
    let txid = || incident.txid.map(|txid| txid.to_string());
    let origin = || incident.origin.as_ref().map(ToString::to_string);
    let record_key = key.or_else(txid).or_else(origin).unwrap_or_else(|| name.clone());
    Entry { entry: name, record_key, record: String::from_utf8_lossy(&encode(incident)).into_owned() }
}

/// The name of the entry that settles this one; `None`: nothing waits for a person.
pub(crate) fn settlement_of(entry: &str) -> Option<String> {
    let (what, about) = entry.split_once(':')?;
    match what {
        "lost" => Some(format!("resolved:{about}")),
        "contradiction" => Some(format!("undone:{about}")),
        "other_hash" | "unreadable" => Some(format!("skipped:{about}")),
        _ => None,
    }
}

/// The records that a person has let be passed.
pub(crate) fn skipped(noted: &[Noted]) -> BTreeSet<Place> {
    noted.iter().filter_map(|noted| noted.entry.entry.strip_prefix("skipped:")?.parse().ok()).collect()
}

// ---- what a person sees ----------------------------------------------------------------------------------------------

/// An incident, and what a person has made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The name of its entry.
    pub entry: String,
    /// What happened.
    pub incident: Incident,
    /// Since when.
    pub since: OffsetDateTime,
    /// How it was settled, and when.
    pub settled: Option<(Incident, OffsetDateTime)>,
    /// The shard has left it behind.
    pub is_past: bool,
}

impl Listed {
    /// Whether a shard waits for a person.
    pub fn is_open(&self) -> bool {
        self.settled.is_none() && !self.is_past && settlement_of(&self.entry).is_some()
    }

    /// Whether its decision, if it is about one, was obeyed meanwhile, or a person has settled it.
    fn agrees(&self, states: &BTreeMap<Txid, State>, marks: &Marks) -> bool {
        let (Some(txid), Some((event, _))) = (self.incident.txid, decided(&self.incident)) else { return true };
        let without_row = if marks.covers(&txid) { State::Purged } else { State::Absent };
        let state = states.get(&txid).copied().unwrap_or(without_row);
        state != State::InDoubt && step(state, event, true).is_ok()
    }

    /// Whether the positions say that its shard has left it behind. The entry of a branch does not tell which incarnation of the
    /// topic it met its decision in.
    fn lies_below(&self, positions: &[Position]) -> bool {
        let Some(Origin { topic, partition, offset }) = &self.incident.origin else { return false };
        let place: Option<Place> = self.entry.split_once(':').and_then(|(_, about)| about.parse().ok());
        let mut of_shard = positions
            .iter()
            .filter(|position| position.topic == *topic && position.shard.partition() == *partition)
            .filter(|position| place.as_ref().is_none_or(|place| place.letters == position.letters))
            .peekable();
        of_shard.peek().is_some() && of_shard.all(|position| position.next_offset.cast_signed() > *offset)
    }
}

/// All incidents, the oldest first, each with what settled it.
pub async fn list<R: Resource>(resource: &R) -> Result<Vec<Listed>, Unavailable> {
    let noted = resource.noted(Which::All).await?;
    let mut listed = listed(noted.into_iter().map(|Noted { entry, since, .. }| (entry.entry, entry.record, since)))?;
    let topic = |listed: &Listed| listed.incident.origin.as_ref().map(|origin| origin.topic.clone());
    let topics: BTreeSet<String> = listed.iter().filter_map(topic).collect();
    let mut positions = Vec::new();
    for topic in topics {
        positions.extend(resource.load_positions(topic).await?);
    }
    let states = resource.states(decisions(&listed)).await?;
    // After the rows: what is purged meanwhile lies below its mark.
    compare(&mut listed, &positions, &states, &resource.marks().await?);
    Ok(listed)
}

/// The same, of entries in the order in which they were noted: name, record, and since when. Not compared with positions yet.
pub(crate) fn listed(
    noted: impl IntoIterator<Item = (String, String, OffsetDateTime)>,
) -> Result<Vec<Listed>, Unavailable> {
    let unreadable = || Unavailable::new("reading what was noted", "an incident cannot be read");
    let mut settlements = BTreeMap::new();
    let mut listed = Vec::new();
    for (entry, record, since) in noted {
        let incident: Incident = decode(record.as_bytes()).map_err(|_| unreadable())?;
        match incident.what {
            IncidentKind::Resolved | IncidentKind::Skipped => drop(settlements.insert(entry, (incident, since))),
            IncidentKind::Lost
            | IncidentKind::Contradiction
            | IncidentKind::OtherHash
            | IncidentKind::Unreadable
            | IncidentKind::FinishedByHand => {
                listed.push(Listed { entry, incident, since, settled: None, is_past: false });
            }
        }
    }
    let mut used = BTreeSet::new();
    for listed in &mut listed {
        let Some(name) = settlement_of(&listed.entry) else { continue };
        listed.settled = settlements.get(&name).cloned();
        used.insert(name);
    }
    let alone = settlements.into_iter().filter(|(name, _)| !used.contains(name));
    listed.extend(alone.map(|(entry, (incident, since))| {
        let settled = Some((incident.clone(), since));
        Listed { entry, incident, since, settled, is_past: true }
    }));
    listed.sort_by_key(|listed| listed.since);
    Ok(listed)
}

/// The branches whose decision could not be obeyed.
pub(crate) fn decisions(listed: &[Listed]) -> Vec<Txid> {
    listed
        .iter()
        .filter(|listed| decided(&listed.incident).is_some())
        .filter_map(|listed| listed.incident.txid)
        .collect()
}

/// Marks those that their shards have left behind. `states`: of [`decisions`].
pub(crate) fn compare(listed: &mut [Listed], positions: &[Position], states: &BTreeMap<Txid, State>, marks: &Marks) {
    for listed in listed {
        listed.is_past |= listed.lies_below(positions) && listed.agrees(states, marks);
    }
}

// ---- what he says ----------------------------------------------------------------------------------------------------

/// Who says what, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    who: String,
    because: String,
}

impl Said {
    /// One line each.
    pub fn new(who: &str, because: &str) -> Result<Self, InvalidName> {
        Ok(Self { who: line("who", who)?, because: line("because", because)? })
    }
}

/// How a person's word stands in the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// As it should.
    Whole,
    /// Its row has no business key: a branch in doubt holds it, and that one's decision may stand behind what the shard stopped at.
    WithoutKey,
}

/// Why a person's word is not taken. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Of this nothing was noted.
    #[error("{0}: no shard of this participant stopped for that; `lost` lists those that wait for a person")]
    NothingThere(String),
    /// It was said before.
    #[error("{what}: {who} has said so already ({because}); `lost` lists it")]
    Already {
        /// About what.
        what: String,
        /// Who.
        who: String,
        /// Why.
        because: String,
    },
    /// The record decides about a branch.
    #[error("{place}: this is the decision of {txid}, which is never passed; say what became of it: `resolve {txid}`")]
    IsDecision {
        /// The record.
        place: String,
        /// Its transaction.
        txid: Txid,
    },
    /// The position is beyond it.
    #[error("{0}: the shard is past it, nothing waits there")]
    Past(Place),
    /// By the rule.
    #[error("{txid}: {why}")]
    Unsettled {
        /// Which transaction.
        txid: Txid,
        /// Why.
        why: Unsettled,
    },
    /// The database does not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Records what a person has made of a lost branch, or of one that contradicts its decision. The shard goes on by itself.
pub async fn resolve<R: Resource>(resource: &R, txid: Txid, settled: Settled, said: Said) -> Result<Taken, Refused> {
    let listed = list(resource).await?;
    let is_it = |listed: &&Listed| {
        let Incident { txid: about, what, .. } = listed.incident;
        about == Some(txid) && (decided(&listed.incident).is_some() || what == IncidentKind::Resolved)
    };
    let found = listed.into_iter().rfind(|listed| is_it(&listed));
    let nothing = || Refused::NothingThere(txid.to_string());
    let Listed { entry, incident, settled: before, .. } = found.ok_or_else(nothing)?;
    refuse_repeat(txid.to_string(), before)?;
    take_word(resource, txid, &entry, incident, settled, said).await
}

/// Records what a person has made of a commit whose row is gone, or says otherwise. Nobody has noted that: [`resolve`] says that
/// nothing is there.
pub async fn resolve_forgotten<R: Resource>(
    resource: &R,
    forgotten: &Forgotten,
    settled: Settled,
    said: Said,
) -> Result<Taken, Refused> {
    let (participant, decision, place) = forgotten.known();
    let incident = Incident { origin: Some(place.origin()), ..about_decision(participant, decision) };
    let entry = entry_at(place, incident.clone()).entry;
    take_word(resource, decision.txid, &entry, incident, settled, said).await
}

/// So often an abandoned row is tried with its key, each time for as long as a lock is waited for.
const TRIES: u32 = 3;

/// Stands in the note of a word whose row has no key.
const WITHOUT_KEY: &str = "without_key";

/// A key that a branch in doubt holds is not waited for, where the row can be without it: the decision that would free it may stand
/// behind the one that this shard waits at. Whoever holds it keeps the attempt from being repeated, and so does his row.
async fn take_word<R: Resource>(
    resource: &R,
    txid: Txid,
    entry: &str,
    incident: Incident,
    settled: Settled,
    Said { who, because }: Said,
) -> Result<Taken, Refused> {
    let (Some(name), Some((decision, outcome)), Some(business_key), Some(attempt), Some(hash)) =
        (settlement_of(entry), decided(&incident), incident.business_key.clone(), incident.attempt, incident.hash)
    else {
        return Err(Refused::NothingThere(txid.to_string()));
    };
    let resolved = Incident {
        what: IncidentKind::Resolved,
        outcome: Some(outcome),
        settled: Some(settled),
        who: Some(who),
        because: Some(because),
        ..incident
    };
    let word = Word { txid, attempt, hash, decision, settled };
    let resolution = |resolved: &Incident, without_key| {
        let entry = Entry { entry: name.clone(), ..entry_of(&txid, resolved) };
        Resolution { word, business_key: business_key.clone(), without_key, entry }
    };
    let refused = |why| Refused::Unsettled { txid, why };
    for _ in 0..TRIES {
        match resource.resolve(resolution(&resolved, false)).await? {
            Err(Unsettled::Held) if settled == Settled::Abandoned => {}
            done => return done.map(|()| Taken::Whole).map_err(refused),
        }
    }
    let resolved = Incident { code: WITHOUT_KEY.parse().ok(), ..resolved };
    let done = resource.resolve(resolution(&resolved, true)).await?;
    done.map(|()| Taken::WithoutKey).map_err(refused)
}

/// The decision that could not be obeyed, of what a person may resolve.
fn decided(incident: &Incident) -> Option<(Event, Verdict)> {
    match (incident.what, incident.outcome?) {
        (IncidentKind::Lost | IncidentKind::Contradiction, Verdict::Commit) => Some((Event::Commit, Verdict::Commit)),
        (IncidentKind::Lost | IncidentKind::Contradiction, Verdict::Abort) => Some((Event::Abort, Verdict::Abort)),
        _ => None,
    }
}

/// Records that a shard may pass the record that it stopped at. `is_decision`: whether the record can be read, and decides
/// about a branch of this participant.
pub async fn skip<R: Resource>(
    resource: &R,
    place: &Place,
    is_decision: Option<Txid>,
    said: Said,
) -> Result<(), Refused> {
    let listed = list(resource).await?;
    let at_it = |listed: &&Listed| listed.incident.origin.as_ref() == Some(&place.origin());
    let names = [IncidentKind::OtherHash, IncidentKind::Unreadable].map(|what| format!("{}:{place}", what.as_str()));
    let Some(Listed { incident, settled, .. }) = listed.iter().find(|listed| names.contains(&listed.entry)) else {
        let txid = listed.iter().find(at_it).and_then(|listed| listed.incident.txid);
        return Err(match txid {
            Some(txid) => Refused::IsDecision { place: place.to_string(), txid },
            None => Refused::NothingThere(place.to_string()),
        });
    };
    refuse_repeat(place.to_string(), settled.clone())?;
    if let (IncidentKind::Unreadable, Some(txid)) = (incident.what, is_decision) {
        return Err(Refused::IsDecision { place: place.to_string(), txid });
    }
    let positions = resource.load_positions(place.topic.clone()).await?;
    let is_past = |position: &Position| {
        position.letters == place.letters && position.shard == place.shard && position.next_offset > place.offset
    };
    if positions.iter().any(is_past) {
        return Err(Refused::Past(place.clone()));
    }
    let Said { who, because } = said;
    let skipped = Incident { what: IncidentKind::Skipped, who: Some(who), because: Some(because), ..incident.clone() };
    Ok(around(Act::Note, resource.note(vec![entry_of(place, &skipped)])).await?)
}

fn refuse_repeat(what: String, before: Option<(Incident, OffsetDateTime)>) -> Result<(), Refused> {
    let Some((Incident { who, because, .. }, _)) = before else { return Ok(()) };
    let (who, because) = (who.unwrap_or_default(), because.unwrap_or_default());
    Err(Refused::Already { what, who, because })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: &str = "suture.decisions/k3f9q/3/77";

    #[test]
    fn a_place_comes_back() {
        let place: Place = PLACE.parse().unwrap();
        assert_eq!((place.to_string().as_str(), place.shard, place.offset), (PLACE, Shard(3), 77));
        for wrong in ["", "3/77", "suture.decisions/3/77", "t/K3F9Q/3/77", "t/k3f9q/-3/77", "t/k3f9q/3/x"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_incident_has_one_name_and_what_settles_it() {
        let (place, txid): (Place, Txid) = (PLACE.parse().unwrap(), "k3f9q-3-1042".parse().unwrap());
        let at = |what| {
            let incident = Incident { txid: Some(txid), ..incident(&"insurer".parse().unwrap(), what) };
            let entry = entry_at(&place, incident);
            let incident: Incident = decode(entry.record.as_bytes()).unwrap();
            assert_eq!(
                (incident.what, incident.origin.unwrap().to_string()),
                (what, "suture.decisions/3/77".to_string())
            );
            assert_eq!(entry.record_key, "k3f9q-3-1042");
            (settlement_of(&entry.entry), entry.entry)
        };
        let resolved = Some("resolved:k3f9q-3-1042".to_string());
        let skipped = Some(format!("skipped:{PLACE}"));
        assert_eq!(at(IncidentKind::Lost), (resolved, "lost:k3f9q-3-1042".to_string()));
        let undone = Some("undone:k3f9q-3-1042".to_string());
        assert_eq!(at(IncidentKind::Contradiction), (undone, "contradiction:k3f9q-3-1042".to_string()));
        assert_eq!(at(IncidentKind::OtherHash), (skipped.clone(), format!("other_hash:{PLACE}")));
        assert_eq!(at(IncidentKind::Unreadable), (skipped, format!("unreadable:{PLACE}")));
        assert_eq!(at(IncidentKind::FinishedByHand).0, None);
    }
}
