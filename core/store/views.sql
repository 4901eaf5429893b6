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
comment on column leaderboard.delta_bpb is 'Measured change in val_bpb, negative is better; NULL for crashed and invalid';
comment on column leaderboard.seeds is 'Candidate runs behind the verdict';

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
left join (select distinct on (experiment) * from experiments) e using (experiment)
where r.status = 'finished' and r.mutant <> c.base;
comment on view deltas is 'Finished runs beside the base run of the same seed and context';
comment on column deltas.delta_bpb is 'val_bpb minus that of the base; negative is better';

create or replace view changes as
select
    s.symbol, s.kind, s.edit, s.old_source, s.new_source,
    l.id, l.profile, l.word, l.delta_bpb, l.context, s.mutant
from (select distinct * from symbol_changes) s
left join leaderboard l using (mutant);
comment on view changes is 'What was edited, symbol by symbol, and what became of it';
comment on column changes.delta_bpb is 'Measured change of the whole mutant; NULL when it has no estimate';
