-- The insurer's payments, in minor units of their currency. Between vote and decision a claim is 'reserved' and its
-- amount stands in the coverage's `reserved`; audited when nothing is in doubt: sum(reserved) = 0, and sum(used) = the
-- accepted claims. Widths are such that the keys fit InnoDB's 3072 bytes; what is longer is refused, never cut.
create table if not exists coverage (
    member varchar(80) character set utf8mb4 collate utf8mb4_bin not null,
    payer varchar(200) character set utf8mb4 collate utf8mb4_bin not null,
    currency char(3) character set ascii collate ascii_bin not null,
    start_date date not null,
    end_date date,
    limit_minor bigint not null check (limit_minor >= 0),
    used_minor bigint not null default 0 check (used_minor >= 0),
    reserved_minor bigint not null default 0 check (reserved_minor >= 0),
    primary key (member, payer, currency, start_date),
    check (used_minor + reserved_minor <= limit_minor)
) engine = InnoDB;

create table if not exists claim (
    claim_id varchar(200) character set utf8mb4 collate utf8mb4_bin primary key,
    member varchar(80) character set utf8mb4 collate utf8mb4_bin not null,
    payer varchar(200) character set utf8mb4 collate utf8mb4_bin not null,
    currency char(3) character set ascii collate ascii_bin not null,
    coverage_start date not null,
    provider_system varchar(120) character set utf8mb4 collate utf8mb4_bin not null,
    provider_value varchar(80) character set utf8mb4 collate utf8mb4_bin not null,
    code_system varchar(120) character set utf8mb4 collate utf8mb4_bin not null,
    code varchar(40) character set utf8mb4 collate utf8mb4_bin not null,
    service_date date not null,
    amount_minor bigint not null check (amount_minor >= 0),
    state varchar(8) character set ascii collate ascii_bin not null default 'reserved' check (state in ('reserved', 'accepted')),
    txid varchar(64) character set ascii collate ascii_bin not null,
    unique (provider_system, provider_value, member, code_system, code, service_date),
    key (txid)
) engine = InnoDB;
