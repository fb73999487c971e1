//! What a person says about a transaction that no shard has stopped for: its decision, from the log, and whether the ledger has
//! forgotten it.

use anyhow::bail;
use suture_contract::ids::Txid;
use suture_contract::messages::Decision;
use suture_contract::topic_map::Topic;
use suture_participants::books::Books;
use suture_participants::envelope::read_decision;
use suture_participants::forgotten::Forgotten;
use suture_participants::incidents::Place;
use suture_participants_core::envelope::Read;

use crate::logs::Logs;
use crate::services::{block_on, not_opened};
use crate::settings::Settings;

/// Looks; and refuses what is known of, with the reason.
pub fn look(settings: &Settings, name: &str, txid: Txid) -> anyhow::Result<Forgotten> {
    let known = |why: &dyn std::fmt::Display| format!("{txid}: no shard of {name} stopped for that, and {why}");
    let config = settings.participant(name)?;
    let mut logs = Logs::open(&settings.kafka, "participant")?;
    if txid.log != logs.log {
        bail!(known(&format!("the transactions of the requests topic that is there begin with {}", logs.log)));
    }
    let (topic, letters) = (logs.name(&Topic::Decisions), logs.letters(&Topic::Decisions)?);
    let mut last: Option<(Place, Decision)> = None;
    logs.read(&Topic::Decisions, txid.shard, 0, |record| {
        if let Read::Ours(decision) = read_decision(record, &config.name)
            && decision.txid == txid
        {
            let place = Place { topic: topic.clone(), letters, shard: txid.shard, offset: record.offset };
            last = Some((place, Decision::clone(&decision)));
        }
        true
    })?;
    let Some((place, decision)) = last else {
        bail!(known(&"the decision log has no decision of it that names this participant"));
    };
    let fingerprint = settings.identity_key()?.map(|key| key.fingerprint());
    let opening = config.opening(&settings.kafka.prefix, fingerprint, false)?;
    let looked = block_on(async {
        let mut books = Books::open(&config, &opening).await.map_err(|error| not_opened(&config, &error))?;
        Ok(Forgotten::look(&mut books, &config.name, &decision, &place).await?)
    })?;
    looked.map_err(|remembered| anyhow::anyhow!(known(&remembered)))
}
