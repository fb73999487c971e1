//! All sample surgeries, once: each ends in all its databases or in none, for the reason that the oracle computes.

use crate::feed::samples;
use crate::world::{Options, World};
use crate::{check, oracle};

#[test]
fn each_surgery_ends_in_all_its_databases_or_is_refused_with_its_reason() {
    let samples = samples();
    let expected = oracle::expect(&samples);
    let world = World::start(&Options::default());
    let mut crew = world.crew();
    let fed = world.feed().feed(&samples);
    world.wait_for_the_end(&fed);
    let (logs, rows) = check::everything(&world);
    oracle::verify_registers(&expected, &logs, &fed);
    oracle::verify_rows(&expected, &rows);
    for story in logs.stories().values() {
        assert_eq!((story.decisions.len(), story.outcomes.len()), (1, 1), "{}: said once", story.txid);
    }

    let rivals: Vec<_> = oracle::cases(&expected).filter(|(_, case)| !case.rivals.is_empty()).collect();
    let lines: Vec<_> = rivals.iter().map(|(index, _)| (samples[*index].file, samples[*index].line)).collect();
    assert_eq!(lines, [("synthea", 24), ("synthea", 76)], "two patients, one surgeon, the same hour");
    assert!(rivals.iter().all(|(_, case)| case.noes.is_empty()), "nobody else refuses either");
    let committed = oracle::cases(&expected).filter(|(_, case)| case.must_commit()).count() + 1;
    assert!(committed * 10 >= samples.len() * 6, "{committed} of {} commit", samples.len());
    crew.terminate();
}
