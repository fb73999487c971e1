//! A broken run made short: parts of its plan are left out, one after the other, as long as the same thing stays broken.

use super::plan::Plan;
use super::run;

/// What remains of a plan, if this is broken with it.
pub fn shrink(plan: Plan, broken: &str) -> Plan {
    let kind = kind(broken);
    let mut shortest = plan;
    loop {
        let before = shortest.left_out.len();
        for part in shortest.parts() {
            let shorter = shortest.without([part.as_str()]);
            if run(shorter.clone()).wrong.iter().any(|wrong| self::kind(wrong) == kind) {
                shortest = shorter;
            }
        }
        if shortest.left_out.len() == before {
            return shortest;
        }
    }
}

/// Its name, without whom it has met.
fn kind(broken: &str) -> &str {
    broken.split_once(':').map_or("not settled", |(kind, _)| kind)
}
