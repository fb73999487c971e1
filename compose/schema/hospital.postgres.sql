-- The hospital's record. A row that can be seen is recorded: what is not decided lies invisible in a prepared branch.
create table if not exists patient (
    system text not null,
    value text not null,
    merged_into text,
    deceased timestamptz,
    primary key (system, value)
);

create table if not exists encounter (
    case_id text primary key,
    patient_system text not null,
    patient_value text not null,
    class text not null,
    status text not null,
    start_at timestamptz not null,
    end_at timestamptz not null,
    txid text not null unique,
    check (start_at <= end_at)
);

create table if not exists surgery (
    case_id text primary key,
    surgeon_system text not null,
    surgeon_value text not null,
    code_system text not null,
    code text not null,
    first_start timestamptz not null,
    last_end timestamptz not null,
    procedures jsonb not null,
    txid text not null unique,
    check (first_start <= last_end)
);
