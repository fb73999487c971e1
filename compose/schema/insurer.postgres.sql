-- The insurer's payments, in minor units of their currency. Audited when nothing is in doubt: sum(used) = the claims.
create table if not exists coverage (
    member text not null,
    payer text not null,
    currency text not null,
    start_date date not null,
    end_date date,
    limit_minor bigint not null check (limit_minor >= 0),
    used_minor bigint not null default 0 check (used_minor >= 0),
    primary key (member, payer, currency, start_date),
    check (used_minor <= limit_minor)
);

create table if not exists claim (
    claim_id text primary key,
    member text not null,
    payer text not null,
    currency text not null,
    coverage_start date not null,
    provider_system text not null,
    provider_value text not null,
    code_system text not null,
    code text not null,
    service_date date not null,
    amount_minor bigint not null check (amount_minor >= 0),
    txid text not null unique,
    unique (provider_system, provider_value, member, code_system, code, service_date)
);
