-- The databases of the two participants that live in PostgreSQL.
create database hospital;
create database insurer;
