-- How a number was guarded, and what its audit showed.

alter table contexts add column confined boolean;
comment on column contexts.confined is 'What ran edited code was in a sandbox; NULL: before there was one';

alter table runs add column sandbox varchar;
comment on column runs.sandbox is 'How the trainer was confined, proved at its start; none: not at all; NULL: before there was one';
alter table runs add column source_sha256 varchar;
comment on column runs.source_sha256 is 'SHA-256 of the module as it was run, letter by letter';
alter table runs add column judge varchar;
comment on column runs.judge is 'Digest of the judge''s files';
alter table runs add column overtime_seconds double;
comment on column runs.overtime_seconds is 'From the end of the budget until the weights were there, on its clock; NULL if it did not get there';
alter table runs add column audit_probes integer;
comment on column runs.audit_probes is 'Rows that the judge asked beside the scored ones; NULL if it did not get there, as for all of the audit';
alter table runs add column audit_positions bigint;
comment on column runs.audit_positions is 'Answers to them that had to agree with what was scored';
alter table runs add column audit_worst_nats double;
comment on column runs.audit_worst_nats is 'Largest difference';
alter table runs add column audit_gain_nats double;
comment on column runs.audit_gain_nats is 'Mean of what the claims gained, just before an alteration, on what the same positions answer without their future';
alter table runs add column audit_seed bigint;
comment on column runs.audit_seed is 'Of the draw of rows and alterations';
