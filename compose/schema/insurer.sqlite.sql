-- The insurer's payments, in minor units of their currency. Between vote and decision a claim is 'reserved' and its
-- amount stands in the coverage's `reserved`; audited when nothing is in doubt: sum(reserved) = 0, and sum(used) = the
-- accepted claims.
create table if not exists coverage (
    member text not null,
    payer text not null,
    currency text not null,
    start_date text not null,
    end_date text,
    limit_minor integer not null check (limit_minor >= 0),
    used_minor integer not null default 0 check (used_minor >= 0),
    reserved_minor integer not null default 0 check (reserved_minor >= 0),
    primary key (member, payer, currency, start_date),
    check (used_minor + reserved_minor <= limit_minor)
) strict;

create table if not exists claim (
    claim_id text primary key,
    member text not null,
    payer text not null,
    currency text not null,
    coverage_start text not null,
    provider_system text not null,
    provider_value text not null,
    code_system text not null,
    code text not null,
    service_date text not null,
    amount_minor integer not null check (amount_minor >= 0),
    state text not null default 'reserved' check (state in ('reserved', 'accepted')),
    txid text not null,
    unique (provider_system, provider_value, member, code_system, code, service_date)
) strict;
create index if not exists claim_txid on claim (txid);
