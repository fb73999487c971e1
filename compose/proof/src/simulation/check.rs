//! What must be, judged from outside: by a copy of all topics from before any compaction, and by counting in the databases.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use suture_contract::codec::{self, OutcomesRecord};
use suture_contract::ids::{Participant, Shard, Txid, code};
use suture_contract::messages::{Ballot, Decision, Outcome, Prepare, Rejection, Request, Settled, Verdict, Vote};
use suture_contract::topic_map::{Topic, participant_group};
use suture_participants::simulated::Count;
use suture_participants_core::branch::State;
use suture_topics::membership::Committed;
use suture_topics::record::Record;

use super::plan::{Ask, Trouble};
use super::world::{World, account};

/// A request that stands in the log.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Its name.
    pub txid: Txid,
    /// What it says.
    pub request: Request,
    /// Its record's key.
    pub order_key: String,
    /// When it was asked for.
    pub at: Duration,
}

impl Asked {
    /// How long its participants have.
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.request.deadline_ms)
    }
}

/// What the logs say of one transaction.
#[derive(Debug, Default, Clone)]
pub struct Story {
    /// The first vote of each that counts.
    pub votes: BTreeMap<Participant, Ballot>,
    /// Each decision, with its time.
    pub decisions: Vec<(i64, Decision)>,
    /// Each outcome, with its time.
    pub outcomes: Vec<(i64, Outcome)>,
    /// When each prepare was appended.
    pub prepares: Vec<i64>,
    /// When the first vote that counts was appended.
    pub voted: Option<i64>,
    /// When a coordinator first said that the deadline was over.
    pub expired: Option<i64>,
}

impl World {
    fn names(&self) -> Vec<Participant> {
        self.plan.participants.iter().map(|seat| seat.name.parse().expect("a participant's name")).collect()
    }

    fn each_shard(&self) -> impl Iterator<Item = Shard> + use<> {
        (0..self.plan.shards).map(Shard)
    }

    /// What the logs say, of every request.
    pub fn stories(&self) -> BTreeMap<Txid, Story> {
        let mut stories: BTreeMap<Txid, Story> =
            self.asked.values().map(|asked| (asked.txid, Story::default())).collect();
        let requests: BTreeMap<Txid, &Request> =
            self.asked.values().map(|asked| (asked.txid, &asked.request)).collect();
        let records =
            |topic: &Topic, shard: Shard| self.cluster.history(&topic.name(&self.kafka.prefix), shard.partition());
        for shard in self.each_shard() {
            for participant in self.names() {
                for record in records(&Topic::Votes(participant.clone()), shard) {
                    let Some(Ok(vote)) = record.value.as_deref().map(codec::decode::<Vote>) else { continue };
                    let is_theirs = requests.get(&vote.txid).is_some_and(|request| {
                        request.hash == vote.hash
                            && request.branches.iter().any(|branch| branch.participant == participant)
                    });
                    if let Some(story) = stories.get_mut(&vote.txid).filter(|_| is_theirs) {
                        if vote.code.as_ref().is_some_and(|code| code.as_str() == code::EXPIRED) {
                            story.expired = story.expired.into_iter().chain(record.timestamp_ms).min();
                        }
                        story.voted = story.voted.into_iter().chain(record.timestamp_ms).min();
                        story.votes.entry(participant.clone()).or_insert(vote.vote);
                    }
                }
                for record in records(&Topic::Prepare(participant.clone()), shard) {
                    let Some(Ok(prepare)) = record.value.as_deref().map(codec::decode::<Prepare>) else { continue };
                    if let Some(story) = stories.get_mut(&prepare.txid) {
                        story.prepares.extend(record.timestamp_ms);
                    }
                }
            }
            for record in records(&Topic::Decisions, shard) {
                let Some(Ok(decision)) = record.value.as_deref().map(codec::decode::<Decision>) else { continue };
                if let Some(story) = stories.get_mut(&decision.txid) {
                    story.decisions.push((record.timestamp_ms.unwrap_or_default(), decision));
                }
            }
            for record in records(&Topic::Outcomes, shard) {
                let Some(Ok(OutcomesRecord::Outcome(outcome))) =
                    record.value.as_deref().map(codec::decode_outcomes_record)
                else {
                    continue;
                };
                if let Some(story) = stories.get_mut(&outcome.txid) {
                    story.outcomes.push((record.timestamp_ms.unwrap_or_default(), outcome));
                }
            }
        }
        stories
    }
}

/// The lowest offset of a shard's requests that has no outcome yet: what lies below it may leave the log.
pub fn all_told_below(world: &World, shard: Shard) -> Option<u64> {
    let stories = world.stories();
    let open = stories.iter().filter(|(txid, story)| txid.shard == shard && story.outcomes.is_empty());
    let (_, end) = world.cluster.range(&Topic::Requests.name(&world.kafka.prefix), shard.partition())?;
    Some(open.map(|(txid, _)| txid.offset).min().unwrap_or(end))
}

/// What is finished at everybody whom it names, by their ledgers.
pub fn applied(world: &World) -> Vec<Txid> {
    let states: Vec<_> = world.databases.iter().map(|database| database.states()).collect();
    let open = world.asked.values().filter(|asked| !world.applied.contains_key(&asked.txid));
    let is_applied = |asked: &&Asked| {
        let mut places = asked
            .request
            .branches
            .iter()
            .map(|branch| world.plan.participants.iter().position(|seat| seat.name == branch.participant.as_str()));
        places.all(|place| {
            let state = place.and_then(|place| states[place].get(&asked.txid));
            state.is_some_and(|state| !matches!(state, State::InDoubt | State::Refused))
        })
    };
    open.filter(is_applied).map(|asked| asked.txid).collect()
}

/// I11: how many records were rejected, each counted once.
fn rejected(world: &World) -> usize {
    let rejections = world
        .each_shard()
        .flat_map(|shard| world.cluster.history(&Topic::Rejected.name(&world.kafka.prefix), shard.partition()));
    let origin = |record: Arc<Record>| {
        let rejection: Rejection = codec::decode(record.value.as_deref()?).ok()?;
        Some((rejection.origin.partition, rejection.origin.offset))
    };
    rejections.filter_map(origin).collect::<BTreeSet<_>>().len()
}

/// Whether everything is rejected, or decided and told; else what is not.
pub fn is_decided(world: &World) -> Result<(), String> {
    if rejected(world) != world.poison {
        return Err(format!("{} records are rejected, and {} are no requests", rejected(world), world.poison));
    }
    for (txid, story) in world.stories() {
        if story.decisions.is_empty() || story.outcomes.is_empty() {
            return Err(format!(
                "{txid} has {} decisions and {} outcomes",
                story.decisions.len(),
                story.outcomes.len()
            ));
        }
    }
    Ok(())
}

/// Whether everything has come to its end; else what has not.
pub fn is_settled(world: &World) -> Result<(), String> {
    is_decided(world)?;
    for (seat, (name, database)) in world.names().iter().zip(&world.databases).enumerate() {
        if world.is_going_back(seat) {
            return Err(format!("{name} is not brought back"));
        }
        let (group, ledger) = (participant_group(&world.kafka.prefix, name), database.ledger_id());
        for topic in [Topic::Prepare(name.clone()), Topic::Decisions].map(|topic| topic.name(&world.kafka.prefix)) {
            for shard in world.each_shard() {
                let end = world.cluster.range(&topic, shard.partition()).map_or(0, |(_, end)| end);
                let committed = world.cluster.committed(&group, &topic, shard.partition());
                let is_done = |committed: &Committed| committed.offset >= end && committed.metadata == ledger;
                if end > 0 && !committed.as_ref().is_some_and(is_done) {
                    return Err(format!("{name} has acknowledged {committed:?} of {end} records of {topic}/{shard}"));
                }
            }
        }
        if let Some(txid) = database.count().in_doubt.first() {
            return Err(format!("{txid} is in doubt at {name}"));
        }
    }
    Ok(())
}

/// I8: what is acknowledged was applied (G8: an acknowledgement is an offset past the last copy).
pub fn acknowledgements(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    let decisions = Topic::Decisions.name(&world.kafka.prefix);
    for (seat, (name, database)) in world.names().iter().zip(&world.databases).enumerate() {
        if world.is_going_back(seat) {
            continue;
        }
        let (group, count) = (participant_group(&world.kafka.prefix, name), database.count());
        for shard in world.each_shard() {
            let Some(committed) = world.cluster.committed(&group, &decisions, shard.partition()) else { continue };
            let is_void = world.was_put_back(seat) && committed.metadata != database.ledger_id();
            if committed.metadata.is_empty() || is_void {
                continue;
            }
            // What is compacted away between two copies nobody reads: the last one counts.
            let mut last: BTreeMap<Txid, (u64, Decision)> = BTreeMap::new();
            for record in world.cluster.history(&decisions, shard.partition()) {
                if let Some(Ok(decision)) = record.value.as_deref().map(codec::decode::<Decision>) {
                    last.insert(decision.txid, (record.offset, decision));
                }
            }
            for (offset, decision) in last.into_values() {
                let is_theirs = decision.participants.contains(name) && offset < committed.offset;
                let (txid, state) = (decision.txid, count.states.get(&decision.txid));
                if is_theirs && !fits(world, seat, &txid, decision.outcome, state) {
                    wrong.push(format!("I8: {name} acknowledged {:?} of {txid}, and has {state:?}", decision.outcome));
                }
            }
        }
    }
    wrong
}

/// Whether a branch is left as was decided, or as somebody has said whose hands explain it.
fn fits(world: &World, seat: usize, txid: &Txid, decided: Verdict, state: Option<&State>) -> bool {
    match (decided, state) {
        (Verdict::Commit, Some(State::Committed)) | (Verdict::Abort, Some(State::Aborted | State::Refused)) => true,
        (_, Some(State::Abandoned)) => {
            let hands = world.operators[seat].hands();
            hands.have(txid, decided == Verdict::Abort) && hands.said.get(txid) == Some(&Settled::Abandoned)
        }
        _ => false,
    }
}

/// Incidents that nothing explains but a hand that was against the decision, or was before it; and hands against the decision
/// that were not noticed.
pub fn called_for_nothing(world: &World) -> Vec<String> {
    let stories = world.stories();
    let decided = |txid: &Txid| Some(stories.get(txid)?.decisions.first()?.1.outcome);
    let mut wrong = Vec::new();
    for (seat, (name, database)) in world.names().iter().zip(&world.databases).enumerate() {
        let (hands, count) = (world.operators[seat].hands(), database.count());
        for entry in &count.incidents {
            let explained = entry.split_once(':').is_some_and(|(what, about)| {
                let Ok(txid) = about.parse::<Txid>() else { return false };
                match what {
                    "lost" => hands.have(&txid, false) && decided(&txid) == Some(Verdict::Commit),
                    "contradiction" => hands.have(&txid, true) && decided(&txid) == Some(Verdict::Abort),
                    "finished_by_hand" => hands.ended.contains_key(&txid),
                    "resolved" | "undone" => hands.said.contains_key(&txid),
                    _ => false,
                }
            });
            if !explained {
                wrong.push(format!("a person is called for nothing: {entry} at {name}"));
            }
        }
        let is_noted = |what: &str, txid: &Txid| count.incidents.contains(&format!("{what}:{txid}"));
        for txid in hands.ended.keys() {
            // Of what was rolled back before its vote another branch may be in its place.
            let is_noticed = match (decided(txid), count.states.get(txid)) {
                (Some(Verdict::Abort), _) if hands.have(txid, true) => {
                    is_noted("contradiction", txid) && is_noted("undone", txid)
                }
                (Some(Verdict::Commit), Some(State::Abandoned)) => is_noted("lost", txid) && is_noted("resolved", txid),
                (Some(Verdict::Commit), _) => is_noted("lost", txid) == is_noted("resolved", txid),
                _ => true,
            };
            if !is_noticed {
                wrong.push(format!("nobody is called: a hand has ended {txid} at {name} against its decision"));
            }
        }
    }
    wrong
}

/// Everything that must hold at the end.
pub fn all(world: &World) -> Vec<String> {
    let mut wrong = acknowledgements(world);
    let stories = world.stories();
    let counts: Vec<Count> = world.databases.iter().map(|database| database.count()).collect();
    let names = world.names();
    let mut effects: BTreeMap<(usize, String), u32> = BTreeMap::new();
    let mut spent: BTreeMap<(usize, String), i64> = BTreeMap::new();
    for (ask, asked) in &world.asked {
        let Asked { txid, request, .. } = asked;
        let story = &stories[txid];
        let Some((_, first)) = story.decisions.first() else { continue };
        let all_yes = request.branches.iter().all(|branch| story.votes.get(&branch.participant) == Some(&Ballot::Yes));
        let product = if all_yes { Verdict::Commit } else { Verdict::Abort };
        for (_, decision) in &story.decisions {
            if decision.outcome != product {
                wrong.push(format!("I2: {txid} is decided {:?}, and its votes say {product:?}", decision.outcome));
            }
            if codec::encode(decision) != codec::encode(first) {
                wrong.push(format!("G4: copies of the decision of {txid} are not equal"));
            }
        }
        if story.outcomes.iter().any(|(_, outcome)| outcome.outcome != product) {
            wrong.push(format!("I6: {txid} was told otherwise than {product:?}"));
        }
        for named in story.outcomes.iter().filter_map(|(_, outcome)| outcome.duplicate_of) {
            let of = world.asked.values().find(|other| other.txid == named);
            let is_same = of
                .is_some_and(|of| (&of.request.business_key, of.request.hash) == (&request.business_key, request.hash));
            let is_committed = stories.get(&named).and_then(|story| story.decisions.first());
            // A hand has committed it: whoever comes then cannot know that it must be undone.
            let by_hand = world.operators.iter().any(|operator| operator.hands().have(&named, true));
            let is_aborted = is_committed.is_none_or(|(_, decision)| decision.outcome == Verdict::Abort);
            if !is_same || is_aborted && !by_hand {
                wrong.push(format!("I11: {txid} is called a duplicate of {named}"));
            }
        }
        let Some((_, Ask::Request { branches, key, .. })) = world.plan.asks.get(*ask) else { continue };
        for (place, from, amount) in branches {
            let state = counts[*place].states.get(txid);
            if !fits(world, *place, txid, product, state) {
                wrong.push(format!("I3: {txid} is decided {product:?}, and {} has {state:?}", names[*place]));
            }
            // What was abandoned has no effect here.
            if product == Verdict::Commit && state != Some(&State::Abandoned) {
                *effects.entry((*place, super::world::token(*key))).or_default() += 1;
                *spent.entry((*place, account(*from))).or_default() += amount;
            }
        }
    }
    for (place, count) in counts.iter().enumerate() {
        let name = &names[place];
        let of_place: BTreeMap<String, u32> = effects
            .iter()
            .filter(|((of, _), _)| *of == place)
            .map(|((_, token), times)| (token.clone(), *times))
            .collect();
        if of_place != count.effects {
            wrong.push(format!("I3: {name} has the effects {:?}, decided are {of_place:?}", count.effects));
        }
        if let Some((token, times)) = count.effects.iter().find(|(_, times)| **times > 1) {
            wrong.push(format!("I7: {token} took effect {times} times at {name}"));
        }
        for (number, first) in world.plan.accounts.iter().enumerate() {
            let spent = spent.get(&(place, account(number))).copied().unwrap_or(0);
            let left = count.accounts.get(&account(number)).copied().unwrap_or(0);
            if left + spent != *first {
                wrong.push(format!("I12: {name} has {left} of {first} in {}, and {spent} is spent", account(number)));
            }
        }
        if !count.in_doubt.is_empty() || !count.reserved.is_empty() {
            wrong.push(format!("I10: {name} has {:?} in doubt and {:?} reserved", count.in_doubt, count.reserved));
        }
    }
    wrong.extend(order(world, &stories));
    wrong.extend(deadlines(world, &stories));
    wrong
}

/// G11: a backlog gets its full deadline. Whoever reads a request live sends its prepares at once, and they land soon unless
/// appends get lost; so nothing expires before its deadline has passed since then. (Short ones may be ten deadlines old.)
fn deadlines(world: &World, stories: &BTreeMap<Txid, Story>) -> Vec<String> {
    const SOON_MS: i64 = 2_000;
    // Who takes over when it is an hour later by the wall clock ends what has votes, and only that.
    let is_later = |(_, trouble): &(Duration, Trouble)| matches!(trouble, Trouble::JumpClock { ms } if *ms > 0);
    let is_later = world.plan.troubles.iter().any(is_later);
    let luck = world.plan.luck;
    let long = |asked: &&Asked| asked.request.deadline_ms >= 8_000 && luck.lost_append == 0 && luck.late_append == 0;
    let too_early = |asked: &Asked| {
        let story = &stories[&asked.txid];
        let deadline_ms = i64::try_from(asked.request.deadline_ms).unwrap_or(i64::MAX);
        let live = story.prepares.iter().min().map(|first| first - SOON_MS);
        let expired = story.expired?;
        if is_later && story.voted.is_some_and(|voted| voted < expired) {
            return None;
        }
        live.is_none_or(|live| expired < live + deadline_ms)
            .then(|| format!("G11: {} expired before its deadline of {deadline_ms} ms was over", asked.txid))
    };
    world.asked.values().filter(long).filter_map(too_early).collect()
}

/// I14: of ordered requests of one key none is prepared before the one before it is decided.
fn order(world: &World, stories: &BTreeMap<Txid, Story>) -> Vec<String> {
    let mut lines: BTreeMap<(&str, Shard), BTreeSet<Txid>> = BTreeMap::new();
    for asked in world.asked.values().filter(|asked| asked.request.ordered) {
        lines.entry((&asked.order_key, asked.txid.shard)).or_default().insert(asked.txid);
    }
    let mut wrong = Vec::new();
    for line in lines.values() {
        let in_order: Vec<&Txid> = line.iter().collect();
        for pair in in_order.windows(2) {
            let decided = stories[pair[0]].decisions.first().map(|(at, _)| *at);
            let prepared = stories[pair[1]].prepares.iter().min();
            if let (Some(decided), Some(prepared)) = (decided, prepared)
                && *prepared < decided
            {
                wrong.push(format!("I14: {} was prepared before {} was decided", pair[1], pair[0]));
            }
        }
    }
    wrong
}
