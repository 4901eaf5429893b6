-- What the agent asked, what that cost, and what came of it.

create table agent_calls (
    call varchar,
    attempt varchar,
    id varchar,
    purpose varchar,
    model varchar,
    prompt varchar,
    input_tokens bigint,
    output_tokens bigint,
    cache_read_tokens bigint,
    cache_write_tokens bigint,
    usd double,
    latency_seconds double,
    outcome varchar,
    message varchar,
    request varchar,
    started_at timestamp
);
comment on table agent_calls is 'Calls of a model, those that failed included; an answer that is used again is no call';
comment on column agent_calls.call is 'Names the file below runs/';
comment on column agent_calls.attempt is 'The attempt that it belongs to';
comment on column agent_calls.id is 'The experiment: its pytest id, without swept values';
comment on column agent_calls.purpose is 'implement: to write a codemod; check: to compare its diff with the spec';
comment on column agent_calls.model is 'Who was asked';
comment on column agent_calls.prompt is 'Digest of all that was sent';
comment on column agent_calls.input_tokens is 'Tokens of the prompt that no cache held; NULL if nothing came';
comment on column agent_calls.output_tokens is 'Tokens of the answer, thinking included; at least, if it was cut; NULL if nothing came';
comment on column agent_calls.cache_read_tokens is 'Tokens of the prompt that a cache held; NULL if nothing came';
comment on column agent_calls.cache_write_tokens is 'Tokens of the prompt that were put into a cache; NULL if nothing came';
comment on column agent_calls.usd is 'What it cost, by the prices that were known; at least, if it was cut; NULL if nothing came';
comment on column agent_calls.latency_seconds is 'From the question to the end of the answer, the retries of the client included';
comment on column agent_calls.outcome is 'answered, truncated, refused, empty, cut, or failed';
comment on column agent_calls.message is 'Why there is no answer; NULL where there is one';
comment on column agent_calls.request is 'The server''s name for it; NULL if it gave none';
comment on column agent_calls.started_at is 'UTC';

create table agent_attempts (
    attempt varchar,
    id varchar,
    spec varchar,
    model varchar,
    outcome varchar,
    reason varchar,
    rounds integer,
    calls integer,
    codemod varchar,
    ended_at timestamp
);
comment on table agent_attempts is 'Attempts of the agent to write a codemod';
comment on column agent_attempts.attempt is 'Names the file below runs/';
comment on column agent_attempts.id is 'The experiment: its pytest id, without swept values';
comment on column agent_attempts.spec is 'Digest of what the spec asks for, as WRITTEN_FOR in the codemod';
comment on column agent_attempts.model is 'Who wrote';
comment on column agent_attempts.outcome is 'implemented or unimplemented';
comment on column agent_attempts.reason is 'Why there is no codemod; NULL where there is one';
comment on column agent_attempts.rounds is 'Codemods that were dry-run';
comment on column agent_attempts.calls is 'Answers that it took, those that were known already included';
comment on column agent_attempts.codemod is 'The last one: what was written, or what was tried; NULL if there was none';
comment on column agent_attempts.ended_at is 'UTC';
