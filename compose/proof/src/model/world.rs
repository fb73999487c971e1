//! One state of the model, what can happen in it, and what must hold.

use std::sync::Arc;

use suture_contract::messages::{Ballot, Verdict};
use suture_coordinator_core::cleanup::{Rules, Sweep};
use suture_participants_core::branch::Answer;

use super::alphabet::{Alphabet, Asked, Cast, Noted, PARTICIPANTS, REQUESTS};
use super::ledger::{Kept, Ledger};
use super::logs::Logs;
use super::owners::{Oracle, Owners, Sent, Start};
use super::property::{Broken, Property};
use super::situations::Situation;

/// What a run explores.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Its name.
    pub name: &'static str,
    /// What is asked for.
    pub asked: &'static [Asked],
    /// Most records of each votes topic.
    pub votes: usize,
    /// Most records of the decision log.
    pub decisions: usize,
    /// Early votes that are held; beyond them they are let go.
    pub held_votes: usize,
    /// Decisions are cleaned up, ledgers purged, the log compacted.
    pub clean_up: bool,
    /// Ledger rows are purged. Not where one key is asked for twice: what is purged is forgotten, and the ledger's age limit must
    /// outlive any replay.
    pub purge: bool,
    /// How much of the requests may be deleted.
    pub retention: Retention,
    /// One participant's database is restored once.
    pub restore: bool,
    /// Votes land that belong to something else.
    pub strays: bool,
    /// Some owners find no topics of a participant.
    pub unknown: bool,
}

/// How much of the requests may be deleted. The votes never go before their requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// Nothing.
    Nothing,
    /// Below a watermark.
    Finished,
    /// Anything: too early.
    Anything,
}

/// A state. No time and no counter is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct World {
    /// What was ever appended.
    pub logs: Logs,
    /// The participants.
    pub ledgers: [Ledger; PARTICIPANTS],
}

/// Something that can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Ask,
    Prepare { participant: usize, request: usize },
    Vote { participant: usize, cast: Cast },
    Expire { participant: usize, request: usize },
    Decide { request: usize, verdict: Verdict },
    Obey { participant: usize },
    Tombstone { request: usize },
    Compact { offset: usize },
    Purge { participant: usize },
    TrimRequests { to: usize },
    TrimVotes { participant: usize },
    BackUp { participant: usize },
    Restore { participant: usize },
}

/// What can happen next.
pub struct Next {
    /// By what.
    pub action: Action,
    /// And then.
    pub world: World,
}

impl World {
    /// With the participants in each other's place. What they do is the same, so one of the two is looked at.
    pub fn mirrored(mut self) -> Self {
        self.logs = self.logs.mirrored();
        self.ledgers.swap(0, 1);
        self
    }

    /// Checks this state and lists what can happen in it.
    pub fn expand(
        &self,
        bounds: &Bounds,
        alphabet: &Alphabet,
        oracle: &mut Oracle<'_>,
        next: &mut Vec<Next>,
        met: &mut Met,
    ) -> Result<(), Broken> {
        let owners = oracle.owners(&self.logs);
        self.check(bounds, alphabet, &owners)?;
        self.meet(bounds, alphabet, &owners, met);
        let mut add = |action, world| next.push(Next { action, world });
        self.append(bounds, alphabet, &owners, &mut add);
        self.take_part(bounds, alphabet, &owners, &mut add)?;
        if bounds.clean_up {
            self.clean_up(bounds, alphabet, &mut add)?;
        }
        self.delete(bounds, &owners, &mut add);
        if bounds.restore {
            self.restore(alphabet, &owners, &mut add)?;
        }
        Ok(())
    }

    // What lands in the logs.

    fn append(&self, bounds: &Bounds, alphabet: &Alphabet, owners: &Owners, add: &mut impl FnMut(Action, Self)) {
        if usize::from(self.logs.requests) < alphabet.asked.len() {
            let mut world = *self;
            world.logs.requests += 1;
            add(Action::Ask, world);
        }
        for request in 0..alphabet.asked.len() {
            for participant in 0..PARTICIPANTS {
                let mut cast = |action, cast: Cast| {
                    if self.logs.votes[participant].len() < bounds.votes {
                        let mut world = *self;
                        world.logs.votes[participant].push(cast.to_byte());
                        add(action, world);
                    }
                };
                if bounds.strays {
                    for of in [Cast::OtherHash(request as u8), Cast::OtherLog(request as u8)] {
                        cast(Action::Vote { participant, cast: of }, of);
                    }
                }
                let ledger = &self.ledgers[participant];
                for (said, of) in [(ledger.said_yes, Cast::Yes as fn(u8) -> Cast), (ledger.said_no, Cast::No)] {
                    if said & (1 << request) != 0 {
                        let of = of(request as u8);
                        cast(Action::Vote { participant, cast: of }, of);
                    }
                }
                if owners.sends.has(Sent::No(request, participant)) {
                    cast(Action::Expire { participant, request }, Cast::Expired(request as u8));
                }
            }
            for verdict in [Verdict::Commit, Verdict::Abort] {
                if owners.sends.has(Sent::Decision(request, verdict)) && self.logs.decisions.len() < bounds.decisions {
                    let mut world = *self;
                    world.logs.decisions.push(Noted::Decision(request as u8, verdict).to_byte());
                    add(Action::Decide { request, verdict }, world);
                }
            }
        }
    }

    // What the participants do.

    fn take_part(
        &self,
        bounds: &Bounds,
        alphabet: &Alphabet,
        owners: &Owners,
        add: &mut impl FnMut(Action, Self),
    ) -> Result<(), Broken> {
        for participant in 0..PARTICIPANTS {
            let ledger = &self.ledgers[participant];
            let with = |ledger: Ledger| {
                let mut world = *self;
                world.ledgers[participant] = ledger;
                world
            };
            for request in 0..usize::from(self.logs.requests) {
                if !owners.sends.has(Sent::Prepare(request, participant)) {
                    continue;
                }
                let prepared = ledger.prepare(alphabet, request)?;
                let changed = prepared.into_iter().filter(|prepared| prepared != ledger);
                changed.for_each(|prepared| add(Action::Prepare { participant, request }, with(prepared)));
            }
            let next = self.logs.decisions_from(usize::from(ledger.now.position)).next();
            if let Some((offset, noted)) = next {
                let mut obeyed = match noted {
                    Noted::Tombstone(_) => *ledger,
                    Noted::Decision(request, verdict) => {
                        let decided = ledger.decide(alphabet, usize::from(request), verdict);
                        decided.map_err(|violation| {
                            Broken::of(Property::Ledger, format!("{participant} obeys {noted:?}: {violation}"))
                        })?
                    }
                };
                obeyed.now.position = offset as u8 + 1;
                add(Action::Obey { participant }, with(obeyed));
            }
            if bounds.purge {
                for old in [0b001, 0b010, 0b100, 0b111] {
                    let purged = ledger.purge(alphabet, old);
                    if purged != *ledger {
                        add(Action::Purge { participant }, with(purged));
                    }
                }
            }
        }
        Ok(())
    }

    // Clean-up and retention.

    fn clean_up(&self, bounds: &Bounds, alphabet: &Alphabet, add: &mut impl FnMut(Action, Self)) -> Result<(), Broken> {
        if self.logs.decisions.len() < bounds.decisions {
            for request in self.tombstones(alphabet)? {
                let mut world = *self;
                world.logs.decisions.push(Noted::Tombstone(request as u8).to_byte());
                add(Action::Tombstone { request }, world);
            }
        }
        for (offset, noted) in self.logs.decisions_from(0) {
            let mut behind = self.logs.decisions_from(offset + 1);
            let mut before = self.logs.decisions_from(0).take_while(|(at, _)| *at < offset);
            let is_superseded = behind.any(|(_, later)| later.request() == noted.request());
            let is_last = matches!(noted, Noted::Tombstone(_))
                && !is_superseded
                && !before.any(|(_, earlier)| earlier.request() == noted.request());
            if is_superseded || is_last {
                let mut world = *self;
                world.logs.removed |= 1 << offset;
                add(Action::Compact { offset }, world);
            }
        }
        Ok(())
    }

    /// What the clean-up of production lets go now. Its timestamps are offsets: nothing goes that a backup is older than.
    fn tombstones(&self, alphabet: &Alphabet) -> Result<Vec<usize>, Broken> {
        // Who has obeyed nothing yet has committed no offset.
        let positions = self.ledgers.iter().map(|ledger| u64::from(ledger.now.position));
        let acks = alphabet.participants.iter().cloned().zip(positions).filter(|(_, position)| *position > 0);
        let oldest =
            self.ledgers.iter().filter_map(|ledger| ledger.backup).map(|backup| i64::from(backup.position)).min();
        let mut sweep = Sweep::new(Rules {
            log: alphabet.log,
            requests_start: self.logs.requests_start.into(),
            acks: acks.collect(),
            end: self.logs.decisions.len() as u64,
            before_ms: oldest.unwrap_or(i64::MAX) - 1,
            most: usize::MAX,
        });
        for (offset, noted) in self.logs.decisions_from(0) {
            let raw = alphabet.noted(noted.to_byte()).at(offset);
            sweep.read(raw).map_err(|bad| Broken::of(Property::Stop, bad))?;
        }
        Ok(sweep.end().tombstones.into_iter().map(|txid| txid.offset as usize).collect())
    }

    fn delete(&self, bounds: &Bounds, owners: &Owners, add: &mut impl FnMut(Action, Self)) {
        let most = match bounds.retention {
            Retention::Nothing => return,
            Retention::Finished => owners.starts.iter().map(|start| start.requests).max().unwrap_or(0),
            Retention::Anything => self.logs.requests,
        };
        for to in self.logs.requests_start + 1..=most {
            let mut world = *self;
            world.logs.requests_start = to;
            add(Action::TrimRequests { to: usize::from(to) }, world);
        }
        for participant in 0..PARTICIPANTS {
            let to = self.logs.first_vote_from(usize::from(self.logs.requests_start), participant) as u8;
            if to > self.logs.votes_start[participant] {
                let mut world = *self;
                world.logs.votes_start[participant] = to;
                add(Action::TrimVotes { participant }, world);
            }
        }
    }

    // A restored database.

    fn restore(&self, alphabet: &Alphabet, owners: &Owners, add: &mut impl FnMut(Action, Self)) -> Result<(), Broken> {
        for participant in 0..PARTICIPANTS {
            let ledger = &self.ledgers[participant];
            let untouched = |ledger: &Ledger| ledger.backup.is_none() && !ledger.restored;
            if self.ledgers.iter().all(untouched) {
                let mut world = *self;
                world.ledgers[participant].backup = Some(ledger.now);
                add(Action::BackUp { participant }, world);
            }
            let Some(backup) = ledger.backup else { continue };
            let mut decided = [None; REQUESTS];
            for (_, noted) in self.logs.decisions_from(usize::from(backup.position)) {
                if let Noted::Decision(request, verdict) = noted {
                    decided[usize::from(request)] = Some(verdict);
                }
            }
            let mut said = [None; REQUESTS];
            for (request, said) in said.iter_mut().enumerate() {
                *said = self.logs.register(request, participant);
            }
            // What was answered was asked for. Whether anything else stands in the log yet is left open.
            for are_all_there in [true, false] {
                let mut is_asked = [false; REQUESTS];
                for (request, is_asked) in is_asked.iter_mut().enumerate() {
                    let is_answered = (ledger.said_yes | ledger.said_no) & (1 << request) != 0;
                    *is_asked = owners.sends.has(Sent::Prepare(request, participant)) && (are_all_there || is_answered);
                }
                // What was decided before the backup is not undecided, whatever its ledger has.
                for (offset, noted) in self.logs.decisions_from(0) {
                    if let Noted::Decision(request, _) = noted
                        && offset < usize::from(backup.position)
                        && decided[usize::from(request)].is_none()
                    {
                        is_asked[usize::from(request)] = false;
                    }
                }
                for refused in 0..1 << alphabet.asked.len() {
                    let restored = ledger.restore(alphabet, &decided, &is_asked, &said, refused);
                    let Some((restored, noes)) = restored else {
                        return Err(Broken::of(Property::Restore, format!("something is LOST at {participant}")));
                    };
                    let was_refused = noes.iter().fold(0, |was, request| was | 1 << request);
                    if was_refused != refused {
                        continue;
                    }
                    let mut world = *self;
                    world.ledgers[participant] = restored;
                    for request in noes {
                        world.logs.votes[participant].push(Cast::No(request as u8).to_byte());
                    }
                    add(Action::Restore { participant }, world);
                }
            }
        }
        Ok(())
    }

    // What must hold.

    fn check(&self, bounds: &Bounds, alphabet: &Alphabet, owners: &Owners) -> Result<(), Broken> {
        let broken = |property, what: String| Err(Broken::of(property, what));
        if let Some(broken) = &owners.broken {
            return Err(broken.clone());
        }
        for request in 0..usize::from(self.logs.requests) {
            let product = self.logs.product(request);
            for (offset, byte) in self.logs.decisions.bytes().iter().enumerate() {
                if let Noted::Decision(of, verdict) = Noted::from_byte(*byte)
                    && usize::from(of) == request
                    && product != Some(verdict)
                {
                    return broken(
                        Property::Product,
                        format!("decision {offset} of {request} is {verdict:?}, the registers say {product:?}"),
                    );
                }
            }
            for verdict in [Verdict::Commit, Verdict::Abort] {
                let is_sent = [Sent::Decision(request, verdict), Sent::Outcome(request, verdict)];
                if is_sent.into_iter().any(|sent| owners.sends.has(sent)) && product != Some(verdict) {
                    return broken(
                        Property::Positions,
                        format!("some owner decides {verdict:?} for {request}, the registers say {product:?}"),
                    );
                }
            }
            self.check_branches(alphabet, request, product)?;
        }
        for (participant, ledger) in self.ledgers.iter().enumerate() {
            self.check_ledger(bounds, alphabet, participant, ledger)?;
        }
        Ok(())
    }

    /// ATOMICITY and VALIDITY: no effect but by a decision, and never against one.
    fn check_branches(&self, alphabet: &Alphabet, request: usize, product: Option<Verdict>) -> Result<(), Broken> {
        for (participant, ledger) in self.ledgers.iter().enumerate() {
            let fits = match ledger.now.rows[request] {
                Kept::Nothing | Kept::InDoubt => true,
                Kept::Committed => product == Some(Verdict::Commit),
                Kept::Aborted | Kept::Noted => product == Some(Verdict::Abort),
                Kept::Refused | Kept::Repeat => product != Some(Verdict::Commit),
            };
            if !fits {
                let kept = ledger.now.rows[request];
                return Err(Broken::of(
                    Property::Atomicity,
                    format!("{participant} has {kept:?} of {request}, the registers say {product:?}"),
                ));
            }
            // A vote that comes late says what the ledger said once.
            let answer = ledger.answer(alphabet, request);
            if product == Some(Verdict::Commit) && matches!(answer, Some(Answer::No(_))) {
                let what = format!("{participant} answers no to {request}, which is committed");
                return Err(Broken::of(Property::Answer, what));
            }
        }
        Ok(())
    }

    fn check_ledger(
        &self,
        bounds: &Bounds,
        alphabet: &Alphabet,
        participant: usize,
        ledger: &Ledger,
    ) -> Result<(), Broken> {
        let broken = |property, what: String| Err(Broken::of(property, what));
        for request in 0..usize::from(self.logs.requests) {
            let copies = self.logs.decisions.bytes().iter().enumerate();
            let last = copies.rev().find(|(_, byte)| Noted::from_byte(**byte).request() == request);
            let Some((offset, byte)) = last else { continue };
            let is_over = ledger.is_over(alphabet, request);
            if usize::from(ledger.now.position) > offset && !is_over {
                return broken(
                    Property::AckTruth,
                    format!("{participant} has acknowledged {request} and it is not over there"),
                );
            }
            if matches!(Noted::from_byte(*byte), Noted::Tombstone(_)) && !is_over {
                return broken(Property::CleanUp, format!("{request} is cleaned up and not over at {participant}"));
            }
        }
        // What is obeyed is obeyed again after a crash, from any position before: nothing comes of that.
        for (offset, noted) in self.logs.decisions_from(0) {
            let Noted::Decision(request, verdict) = noted else { continue };
            if offset >= usize::from(ledger.now.position) {
                break;
            }
            let again = ledger.decide(alphabet, usize::from(request), verdict);
            let is_nothing = matches!(&again, Ok(again) if again == ledger);
            if !is_nothing {
                return broken(
                    Property::Redelivery,
                    format!(
                        "{participant} obeys {noted:?} at {offset} again and {}",
                        match again {
                            Ok(_) => "something comes of it".to_string(),
                            Err(violation) => violation.to_string(),
                        }
                    ),
                );
            }
        }
        let committed = |key: u8| {
            let is_of = |(request, asked): &(usize, &Asked)| {
                matches!(asked, Asked::Request { key: of, .. } if *of == key)
                    && ledger.now.rows[*request] == Kept::Committed
            };
            alphabet.asked.iter().enumerate().filter(is_of).count()
        };
        if !bounds.purge && (0..REQUESTS as u8).any(|key| committed(key) > 1) {
            return broken(Property::ExactlyOnce, format!("a key took effect twice at {participant}"));
        }
        // One that is aborted may be prepared late: it has no effect.
        let is_ordered = |request: usize| matches!(alphabet.asked[request], Asked::Request { ordered: true, .. });
        let may_commit = |request: usize| is_ordered(request) && self.logs.product(request) != Some(Verdict::Abort);
        let line = (0..usize::from(self.logs.requests)).filter(|request| may_commit(*request));
        let mut line = line.map(|request| ledger.now.rows[request]);
        let is_first_in_doubt = line.by_ref().any(|kept| kept == Kept::InDoubt);
        if is_first_in_doubt && line.any(|kept| matches!(kept, Kept::InDoubt | Kept::Committed)) {
            return broken(Property::Order, format!("{participant} has begun with a later one of the patient"));
        }
        Ok(())
    }

    fn meet(&self, bounds: &Bounds, alphabet: &Alphabet, owners: &Arc<Owners>, met: &mut Met) {
        for situation in Situation::ALL {
            if !met.has(situation) && situation.is_met(self, bounds, alphabet, owners) {
                met.add(situation);
            }
        }
    }

    // Draining.

    /// Everything that is under way is lost, and all coordinators are dead. An owner that starts here must end every request that is
    /// left, with participants that answer, or with none; and all branches are over then.
    pub fn drain(
        &self,
        alphabet: &Alphabet,
        oracle: &mut Oracle<'_>,
        start: Start,
        answer: bool,
    ) -> Result<(), Broken> {
        let mut world = *self;
        for _ in 0..4 * REQUESTS * PARTICIPANTS {
            let sends = oracle.verdicts(start, &world.logs);
            let mut moved = false;
            for request in 0..usize::from(world.logs.requests) {
                for participant in 0..PARTICIPANTS {
                    let is_empty = world.logs.register(request, participant).is_none();
                    if answer && sends.has(Sent::Prepare(request, participant)) {
                        let ledger = &mut world.ledgers[participant];
                        if let Some(prepared) = ledger.prepare(alphabet, request)?.first() {
                            *ledger = *prepared;
                            let is_yes = matches!(ledger.answer(alphabet, request), Some(Answer::Yes));
                            let cast = if is_yes { Cast::Yes(request as u8) } else { Cast::No(request as u8) };
                            if is_empty && world.logs.votes[participant].len() < super::logs::LONGEST {
                                world.logs.votes[participant].push(cast.to_byte());
                                moved = true;
                            }
                        }
                    } else if is_empty
                        && sends.has(Sent::No(request, participant))
                        && world.logs.votes[participant].len() < super::logs::LONGEST
                    {
                        world.logs.votes[participant].push(Cast::Expired(request as u8).to_byte());
                        moved = true;
                    }
                }
                for verdict in [Verdict::Commit, Verdict::Abort] {
                    let is_new = !world
                        .logs
                        .decisions_from(0)
                        .any(|(_, noted)| noted == Noted::Decision(request as u8, verdict));
                    if sends.has(Sent::Decision(request, verdict))
                        && is_new
                        && world.logs.decisions.len() < super::logs::LONGEST
                    {
                        world.logs.decisions.push(Noted::Decision(request as u8, verdict).to_byte());
                        moved = true;
                    }
                }
            }
            for participant in 0..PARTICIPANTS {
                let from = usize::from(world.ledgers[participant].now.position);
                while let Some((offset, noted)) =
                    { world.logs.decisions_from(usize::from(world.ledgers[participant].now.position)).next() }
                {
                    let ledger = &mut world.ledgers[participant];
                    if let Noted::Decision(request, verdict) = noted {
                        let decided = ledger.decide(alphabet, usize::from(request), verdict);
                        *ledger = decided.map_err(|violation| Broken::of(Property::Ledger, violation))?;
                    }
                    ledger.now.position = offset as u8 + 1;
                }
                moved |= usize::from(world.ledgers[participant].now.position) > from;
            }
            if !moved {
                break;
            }
        }
        let is_full = world.logs.votes.iter().any(|votes| votes.len() == super::logs::LONGEST)
            || world.logs.decisions.len() == super::logs::LONGEST;
        for request in usize::from(self.logs.requests_start)..usize::from(world.logs.requests) {
            if is_full || !alphabet.is_transaction(request) {
                continue;
            }
            let product = world.logs.product(request);
            let is_over = |ledger: &Ledger| {
                ledger.is_over(alphabet, request)
                    || ledger.now.rows[request] == Kept::Nothing && product == Some(Verdict::Abort)
            };
            if product.is_none() || !world.ledgers.iter().all(is_over) {
                let participants = if answer { "answer" } else { "are silent" };
                return Err(Broken::of(
                    Property::Liveness,
                    format!("from {start:?} (participants {participants}) {request} does not end: {product:?}"),
                ));
            }
        }
        Ok(())
    }

    /// The first vote of a register is this one.
    pub fn first_cast(&self, request: usize, participant: usize) -> Option<Cast> {
        let mut casts = self.logs.votes[participant].bytes().iter().map(|byte| Cast::from_byte(*byte));
        casts.find(|cast| cast.is_about(request))
    }

    /// Whether a register holds this ballot.
    pub fn holds(&self, request: usize, participant: usize, ballot: Ballot) -> bool {
        self.logs.register(request, participant) == Some(ballot)
    }
}

/// Situations that were met.
#[derive(Debug, Clone, Copy, Default)]
pub struct Met(u64);

impl Met {
    /// Whether this one was.
    pub fn has(self, situation: Situation) -> bool {
        self.0 & (1 << situation as u64) != 0
    }

    /// What another run has met counts too.
    pub fn join(&mut self, other: Self) {
        self.0 |= other.0;
    }

    fn add(&mut self, situation: Situation) {
        self.0 |= 1 << situation as u64;
    }
}
