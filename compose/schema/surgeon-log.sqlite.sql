-- The surgeons' operation log. Cases are pseudonyms. Rows with state 'reserved' are not decided yet, but take the
-- surgeon's time all the same.
create table if not exists practitioner (
    system text not null,
    value text not null,
    active integer not null default 1 check (active in (0, 1)),
    primary key (system, value)
) strict;

create table if not exists privilege (
    practitioner_system text not null,
    practitioner_value text not null,
    code_system text not null,
    code text not null,
    valid_from_ms integer,
    valid_to_ms integer,
    primary key (practitioner_system, practitioner_value, code_system, code)
) strict;

create table if not exists log_entry (
    case_pseudonym text not null,
    practitioner_system text not null,
    practitioner_value text not null,
    role text not null,
    code_system text not null,
    code text not null,
    start_ms integer not null,
    end_ms integer not null,
    room text,
    state text not null default 'reserved' check (state in ('reserved', 'logged')),
    txid text not null,
    primary key (case_pseudonym, practitioner_system, practitioner_value, role),
    check (start_ms <= end_ms)
) strict;
create index if not exists log_entry_txid on log_entry (txid);
create index if not exists log_entry_time on log_entry (practitioner_system, practitioner_value, start_ms);
