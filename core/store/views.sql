-- Made anew at each opening; the newest attempt speaks for an experiment.

create or replace view leaderboard as
with latest as (
    select *, row_number() over (
        partition by experiment, context order by attempt desc, decided_at desc
    ) as nth
    from verdicts
)
select
    c.profile, e.id, v.word, v.delta_bpb, v.lower_bpb, v.upper_bpb, v.predicted_bpb,
    v.candidates as seeds, v.attempt, v.context, v.mutant, v.decided_at
from latest v
join (select distinct on (experiment) * from experiments) e using (experiment)
join (select distinct on (context) * from contexts) c using (context)
where v.nth = 1
order by c.profile, v.context, v.delta_bpb nulls last;
comment on view leaderboard is 'Experiments by measured change, best first, within each context';
comment on column leaderboard.profile is 'gpu or cpu';
comment on column leaderboard.id is 'The pytest id of the experiment';
comment on column leaderboard.word is 'supported, refuted, inconclusive, invalid, crashed or measured';
comment on column leaderboard.delta_bpb is 'Measured change in val_bpb, negative is better; NULL for crashed and invalid';
comment on column leaderboard.lower_bpb is 'Lower end of the 90 % interval';
comment on column leaderboard.upper_bpb is 'Upper end of the 90 % interval';
comment on column leaderboard.predicted_bpb is 'Predicted change under this profile; NULL: nothing is predicted here';
comment on column leaderboard.seeds is 'Candidate runs behind the verdict';
comment on column leaderboard.attempt is '0 for the first test of this mutant, then one more for each test on fresh seeds';
comment on column leaderboard.context is 'Digest of the context; runs are compared within one only';
comment on column leaderboard.mutant is 'Digest of the mutant';
comment on column leaderboard.decided_at is 'UTC';

create or replace view deltas as
with base as (
    select r.context, r.seed, avg(r.val_bpb) as base_bpb
    from runs r
    join (select distinct on (context) * from contexts) c using (context)
    where r.mutant = c.base and r.status = 'finished'
    group by all
)
select
    e.id, r.context, r.seed, r.val_bpb, b.base_bpb,
    r.val_bpb - b.base_bpb as delta_bpb, r.steps, r.train_tokens, r.peak_mib, r.run
from runs r
join (select distinct on (context) * from contexts) c using (context)
join base b using (context, seed)
left join (select distinct id, mutant from experiments) e using (mutant)
where r.status = 'finished' and r.mutant <> c.base;
comment on view deltas is 'Finished runs beside the base run of the same seed and context';
comment on column deltas.id is 'The pytest id of the experiment that it tests; a row for each of several';
comment on column deltas.context is 'Digest of the context';
comment on column deltas.seed is 'The seed of both';
comment on column deltas.val_bpb is 'Bits per byte of the mutant';
comment on column deltas.base_bpb is 'Bits per byte of the base with the same seed; the mean if it ran twice';
comment on column deltas.delta_bpb is 'val_bpb minus base_bpb; negative is better';
comment on column deltas.steps is 'Optimizer steps of the mutant';
comment on column deltas.train_tokens is 'Tokens that the mutant was trained on';
comment on column deltas.peak_mib is 'Memory of the mutant''s trainer';
comment on column deltas.run is 'Names the folder below runs/';

create or replace view changes as
select
    s.symbol, s.kind, s.edit, s.old_source, s.new_source,
    l.id, l.profile, l.word, l.delta_bpb, l.context, s.mutant
from (select distinct * from symbol_changes) s
left join leaderboard l using (mutant);
comment on view changes is 'What was edited, symbol by symbol, and what became of it';
comment on column changes.symbol is 'As Block.forward, or ROPE_BASE';
comment on column changes.kind is 'constant, function, class, import or statement';
comment on column changes.edit is 'added, changed, removed or moved';
comment on column changes.old_source is 'The symbol before; NULL where it was not there';
comment on column changes.new_source is 'The symbol after; NULL where it is not there any more';
comment on column changes.id is 'The pytest id of the experiment; NULL before a verdict';
comment on column changes.profile is 'gpu or cpu; NULL before a verdict';
comment on column changes.word is 'The verdict on the whole mutant; NULL before a verdict';
comment on column changes.delta_bpb is 'Measured change of the whole mutant; NULL when it has no estimate';
comment on column changes.context is 'Digest of the context; NULL before a verdict';
comment on column changes.mutant is 'Digest of the mutant';
