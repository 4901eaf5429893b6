-- How often a run read the corpus: beyond a few times it learns it by heart.

alter table runs add column epochs double;
comment on column runs.epochs is 'Times that it read the training corpus; NULL before the first step, or before it was kept';
