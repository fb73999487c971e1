//! Topics that were deleted and created again: their offsets start anew, and so must everything that is named by an offset. No
//! name is used twice, nothing takes effect twice, and a branch in doubt whose decision died with its log is nobody's to guess.

use std::collections::BTreeSet;

use crate::cluster;
use crate::feed::samples;
use crate::oracle;
use crate::world::{Options, PARTICIPANTS, World};

#[test]
fn a_new_log_has_new_names_and_nothing_takes_effect_twice() {
    let samples = samples();
    let (first, second) = samples.split_at(samples.len() / 2);
    let mut world = World::start(&Options::default());
    let mut crew = world.crew();
    let mut feed = world.feed();
    let fed = feed.feed(first);
    world.wait_for_the_end(&fed);
    crew.terminate();
    let (letters, before) = (world.follower.letters(), world.rows());

    let of_each = |kind: &str| PARTICIPANTS.map(|participant| format!("{kind}.{participant}"));
    let all =
        [["requests", "decisions", "outcomes"].map(str::to_string), of_each("prepare"), of_each("votes")].concat();
    world.recreate(&all.iter().map(String::as_str).collect::<Vec<_>>());
    assert_ne!(world.follower.letters(), letters);

    let mut crew = world.crew();
    // The old ones once more, and the new ones.
    let again = feed.feed(first);
    let fed = feed.feed(second);
    world.wait_for_the_end(&[again, fed].concat());
    crew.terminate();
    let rows = world.rows();
    oracle::verify_rows(&oracle::expect(&samples), &rows);
    for participant in PARTICIPANTS {
        let [before, after] = [&before, &rows].map(|rows| rows.of(participant));
        for (txid, row) in &before.ledger {
            assert_eq!(after.state(txid), Some(row.state.as_str()), "{participant}: {txid} was decided before");
        }
        let new = after.ledger.keys().filter(|txid| !before.ledger.contains_key(*txid));
        let begin_as_before: BTreeSet<&String> = new.filter(|txid| txid.starts_with(&letters)).collect();
        assert_eq!(begin_as_before, BTreeSet::new(), "{participant}");
    }
}

#[test]
fn a_branch_in_doubt_whose_log_is_gone_is_left_to_people() {
    let samples = samples();
    let sound = samples.iter().find(|sample| oracle::commits_in_all_three(sample, &samples)).expect("one of 125");
    let mut world = World::start(&Options::default());
    let mut services = [
        world.service("coordinator", &["coordinator"]),
        world.service("ingest", &["ingest"]),
        world.participant("hospital"),
        world.participant("surgeon-log"),
    ];
    // The insurer is away, so nobody decides.
    world.feed().feed([sound]);
    let mut in_doubt = String::new();
    world.wait_for_logs("the others have voted", |logs| {
        let votes = ["votes.hospital", "votes.surgeon-log"].map(|topic| logs.topic(topic).first());
        let voted = votes.iter().flatten().next().map(|vote| vote.text("txid").to_string());
        in_doubt = voted.unwrap_or_default();
        votes.iter().all(Option::is_some)
    });
    services.iter_mut().for_each(|service| service.kill());
    let before = world.rows().with_txids();

    world.recreate(&["requests"]);
    for participant in ["hospital", "surgeon-log"] {
        let output = world.suture(&["participant", participant]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let words = ["1 branches are in doubt whose requests or decisions stood in topics that are gone", &in_doubt];
        assert!(!output.status.success() && words.iter().all(|word| said.contains(word)), "{participant}: {said}");
    }
    let rows = world.rows();
    assert_eq!(rows.with_txids(), before, "nothing was touched");
    let prepared = &rows.of("hospital").prepared;
    assert!(prepared.iter().any(|gid| gid.contains(&in_doubt)), "{prepared:?}");
    // Who has nothing in doubt goes on.
    let mut insurer = world.participant("insurer");
    cluster::wait_until("the insurer serves", || insurer.log().contains("shards assigned"));
    assert!(insurer.terminate().success());
}
