-- The database of the participant that may live in MariaDB, and the account that it uses.
create database insurer;
create user insurer;
grant all privileges on insurer.* to insurer;
