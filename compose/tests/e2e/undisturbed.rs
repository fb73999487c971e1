//! What the databases hold after a run in which nothing happens: the measure for runs in which something does.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use crate::feed::{Sample, samples};
use crate::world::{Options, World};
use crate::{check, oracle};

/// All business rows without their txids.
pub type WithoutTxids = BTreeSet<(String, String, String)>;

static ROWS: OnceLock<WithoutTxids> = OnceLock::new();

/// The sample surgeries but the two that compete for a surgeon: what becomes of each is no matter of chance.
pub fn surgeries() -> Vec<Sample> {
    let mut surgeries = samples();
    surgeries.retain(|sample| !(sample.file == "synthea" && [24, 76].contains(&sample.line)));
    assert!(oracle::cases(&oracle::expect(&surgeries)).all(|(_, case)| case.rivals.is_empty()));
    surgeries
}

/// What [`surgeries`] leave behind. The run takes place once, in a deployment of its own: to be asked for before the
/// test has one.
pub fn rows() -> &'static WithoutTxids {
    ROWS.get_or_init(|| {
        let surgeries = surgeries();
        let world = World::start(&Options::default());
        let mut crew = world.crew();
        let fed = world.feed().feed(&surgeries);
        world.wait_for_the_end(&fed);
        let (_, rows) = check::everything(&world);
        oracle::verify_rows(&oracle::expect(&surgeries), &rows);
        crew.terminate();
        rows.without_txids()
    })
}
