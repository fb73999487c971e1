//! A database that went back, when more happens than that: decisions that come meanwhile, records that a person has skipped, rows
//! that somebody has entered by hand.

use suture_contract::messages::IncidentKind;

use super::*;

/// Bringing it back has begun, and is over.
const BROUGHT_BACK: &str = "select (select count(*) from suture_meta where name = 'ledger_id' and value like '%-%')
                                 - (select count(*) from suture_meta where name = 'restoring')";

/// The decision is there before the service has read the prepare again.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_comes_while_a_database_is_brought_back_is_not_lost() {
    let mut world = World::new();
    let running = world.start().await;
    world.until_acknowledged(DECISIONS, 0, 0).await;
    running.stop().await;
    let backup = world.copy().await;
    let running = world.start().await;
    let open = world.prepare(0, 0, "open");
    world.ask(&open);
    assert_eq!(world.ballot(&open).await, YES);
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
