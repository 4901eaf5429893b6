-- How far the audit's answers differ where nothing was altered.

alter table runs add column audit_mean_nats double;
comment on column runs.audit_mean_nats is 'Mean absolute difference far from any alteration; NULL: before it was kept';
alter table runs add column audit_loud_share double;
comment on column runs.audit_loud_share is 'Share of the positions there that differ beyond rounding; NULL: before it was kept';
