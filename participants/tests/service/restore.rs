//! A database that went back, when more happens than that: decisions that come meanwhile, records that a person has skipped, rows
//! that somebody has entered by hand.

use suture_contract::messages::IncidentKind;
use suture_participants::incidents;

use super::incidents::{place, said, until_listed};
use super::*;

/// Bringing it back has begun, and is over.
const BROUGHT_BACK: &str = "select (select count(*) from suture_meta where name = 'ledger_id' and value like '%-%')
                                 - (select count(*) from suture_meta where name = 'restoring')";

/// The decision is there before the service has read the prepare again.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_comes_while_a_database_is_brought_back_is_not_lost() {
    let mut world = World::new();
    let backup = world.copy_of_a_new_one().await;
    let running = world.start().await;
    let open = world.said_yes(0, 0, "open").await;
    world.until_acknowledged(PREPARES, 0, 1).await;
    running.stop().await;

    world.put_back(&backup).await;
    let running = world.start().await;
    world.until_counted(BROUGHT_BACK, 1).await;
    world.decide(&open, Verdict::Commit);
    world.until_renamed(&running.ledger, &[(0, 1)]).await;
    assert_eq!(world.number("select count(*) from item where done"), 1);
    running.stop().await;
}

/// As a backup that holds no branch in doubt: the positions are past their prepares.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_prepared_again_is_tried_until_nothing_is_in_its_way() {
    let mut world = World::new();
    let running = world.start().await;
    let (low, high) = (world.prepare(1, 0, "low"), world.prepare_after(0, 0, "high", "low"));
    for branch in [&low, &high] {
        world.ask(branch);
        assert_eq!(world.ballot(branch).await, YES);
        world.until_acknowledged(PREPARES, branch.txid.shard.partition(), 1).await;
    }
    running.stop().await;
    let forget = "delete from suture_ledger; delete from item";
    let again = "insert into suture_meta values ('restoring', 'by hand')";
    let entered_by_hand = "insert into item (id, txid) values ('low', 'nobody')";
    let mended = "delete from item where txid = 'nobody'";
    for (by_hand, prepared) in
        [(format!("{forget}; {entered_by_hand}"), 1), (mended.to_string(), 2), (forget.to_string(), 2)]
    {
        Connection::open(world.file()).unwrap().execute_batch(&format!("{by_hand}; {again}")).unwrap();
        let running = world.start().await;
        world.until_counted("select count(*) from suture_meta where name = 'restoring'", 0).await;
        assert_eq!(world.number("select count(*) from suture_ledger where state = 'in_doubt'"), prepared);
        assert_eq!(world.number("select count(*) from suture_ledger"), prepared, "a no left nothing");
        running.stop().await;
    }
    let running = world.start().await;
    for branch in [&low, &high] {
        world.decide(branch, Verdict::Commit);
        world.until_acknowledged(DECISIONS, branch.txid.shard.partition(), 1).await;
    }
    assert_eq!(world.number("select count(*) from item where done"), 2);
    running.stop().await;
}

/// A prepare of a newer version, passed by a person's word. It is at the start of its log.
async fn pass_newer(world: &World) {
    let newer = String::from_utf8(encode(&world.prepare(0, 9, "newer"))).unwrap().replace("\"v\":1", "\"v\":2");
    world.append_raw(PREPARES, 0, "x", Some(newer.as_bytes()));
    skip(world, PREPARES).await;
}

/// Lets the first record of shard 0 be passed, which has stopped it.
async fn skip(world: &World, topic: &'static str) {
    let operator = world.resource().await;
    until_listed(&operator, |incident| incident.what == IncidentKind::Unreadable).await;
    incidents::skip(&operator, &place(world, topic, 0, 0), None, said()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepare_of_a_newer_version_may_be_skipped_before_a_backup_and_after_it() {
    for is_in_backup in [true, false] {
        let mut world = World::new();
        let running = world.start().await;
        let created = running.ledger.clone();
        match is_in_backup {
            true => {
                pass_newer(&world).await;
                world.until_acknowledged(PREPARES, 0, 1).await;
            }
            false => drop(world.until_acknowledged(DECISIONS, 0, 0).await),
        }
        running.stop().await;
        let backup = world.copy().await;
        let running = world.start().await;
        if !is_in_backup {
            pass_newer(&world).await;
        }
        world.until_acknowledged(PREPARES, 0, 1).await;
        let branch = world.prepare(1, 0, "a");
        world.ask(&branch);
        assert_eq!(world.ballot(&branch).await, YES);
        world.decide(&branch, Verdict::Commit);
        world.until_acknowledged(DECISIONS, 1, 1).await;
        running.stop().await;

        world.put_back(&backup).await;
        if !is_in_backup {
            let ended = timeout(PATIENCE, world.start().await.service).await.expect("it goes on").unwrap();
            assert!(matches!(ended, Err(ServiceError::Restore(_))), "it may be the prepare of a commit: {ended:?}");
            skip(&world, PREPARES).await;
        }
        let running = world.start().await;
        world.until_renamed(&created, &[(1, 1)]).await;
        assert_eq!(world.number("select count(*) from item where done"), 1);
        running.stop().await;
    }
}

/// The backup knows nothing of the word, and it must be said again.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_behind_a_decision_that_nobody_can_read_is_brought_back() {
    let mut world = World::new();
    let running = world.start().await;
    let created = running.ledger.clone();
    world.until_acknowledged(DECISIONS, 0, 0).await;
    running.stop().await;
    let backup = world.copy().await;
    let running = world.start().await;
    world.append_raw(DECISIONS, 0, "x", Some(b"{"));
    skip(&world, DECISIONS).await;
    let branch = world.said_yes(0, 0, "a").await;
    world.decide(&branch, Verdict::Commit);
    world.until_acknowledged(DECISIONS, 0, 2).await;
    running.stop().await;

    world.put_back(&backup).await;
    let running = world.start().await;
    skip(&world, DECISIONS).await;
    world.until_renamed(&created, &[(0, 2)]).await;
    assert_eq!(world.number("select count(*) from item where done"), 1);
    let listed = incidents::list(&world.resource().await).await.unwrap();
    assert!(listed.iter().all(|listed| listed.incident.what == IncidentKind::Unreadable), "{listed:?}");
    running.stop().await;
}
