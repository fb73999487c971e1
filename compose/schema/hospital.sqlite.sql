-- The hospital's record. Rows with state 'reserved' belong to transactions that are not decided; nobody else shows them.
create table if not exists patient (
    system text not null,
    value text not null,
    merged_into text,
    deceased_ms integer,
    primary key (system, value)
) strict;

create table if not exists encounter (
    case_id text primary key,
    patient_system text not null,
    patient_value text not null,
    class text not null,
    status text not null,
    start_ms integer not null,
    end_ms integer not null,
    state text not null default 'reserved' check (state in ('reserved', 'recorded')),
    txid text not null,
    check (start_ms <= end_ms)
) strict;
create index if not exists encounter_txid on encounter (txid);

create table if not exists surgery (
    case_id text primary key,
    surgeon_system text not null,
    surgeon_value text not null,
    code_system text not null,
    code text not null,
    first_start_ms integer not null,
    last_end_ms integer not null,
    procedures text not null,
    state text not null default 'reserved' check (state in ('reserved', 'recorded')),
    txid text not null,
    check (first_start_ms <= last_end_ms)
) strict;
create index if not exists surgery_txid on surgery (txid);
