-------------------------------- MODULE Job --------------------------------
(***************************************************************************)
(* The life of one job between Redis, several workers and Celery, as the   *)
(* scripts in orcd/store/lua implement it.  docs/protocol.md says in words *)
(* what is modelled here.                                                   *)
(*                                                                          *)
(* What may go wrong: a lease runs out while its owner lives; a worker      *)
(* dies; an answer of Redis is lost after the script has run; messages are  *)
(* lost; Redis loses writes that it has acknowledged (it comes back from an *)
(* older snapshot, or a replica that lags is promoted).                     *)
(*                                                                          *)
(* Left out: time (a lease may run out at any moment), the texts (a token   *)
(* is drawn from the position and the tokens before it, so equal positions  *)
(* mean equal tokens as long as no owner reads a log with a gap).           *)
(***************************************************************************)
EXTENDS Naturals, Sequences

CONSTANTS
    Workers,
    NumTokens,          \* length of the answer
    MaxClaims,          \* bounds that make the model finite
    MaxLeaseLosses,
    MaxDeaths,
    MaxLostMessages,
    MaxRollbacks,
    CompareToken,       \* does a write compare the owner token, beside the epoch?
    NamePredecessor     \* does an append name the entry that it follows?

VARIABLES
    redis,      \* what Redis holds now
    snapshot,   \* what it would come back with
    owns,       \* worker -> what it believes to own, NoLease if nothing
    holds,      \* worker -> whether it holds a Celery message of the job that is not answered
    nextToken,  \* owner tokens are random: each is handed out once
    followed,   \* whether a Celery result was stored and its links were followed
    seen,       \* number of tokens that a client has shown
    faults      \* how often each fault has happened

vars == <<redis, snapshot, owns, holds, nextToken, followed, seen, faults>>

NoLease == [epoch |-> 0, token |-> 0, tail |-> 0]
NoFaults == [lease |-> 0, death |-> 0, message |-> 0, rollback |-> 0]

Last(log) == IF log = <<>> THEN 0 ELSE log[Len(log)]
IsWhole(log) == \A i \in 1..Len(log) : log[i] = i

Init ==
    /\ redis = [state |-> "queued", epoch |-> 0, token |-> 0, leased |-> FALSE, log |-> <<>>,
                message |-> TRUE,       \* a Celery message waits in the queue
                recorded |-> FALSE]     \* the record holds the message with its canvas
    /\ snapshot = redis
    /\ owns = [w \in Workers |-> NoLease]
    /\ holds = [w \in Workers |-> FALSE]
    /\ nextToken = 1
    /\ followed = FALSE
    /\ seen = 0
    /\ faults = NoFaults

-----------------------------------------------------------------------------
(* Workers *)

\* Take a message; it is noted as unacknowledged in the same script.
Take(w) ==
    /\ redis.message
    /\ ~holds[w]
    /\ holds' = [holds EXCEPT ![w] = TRUE]
    /\ redis' = [redis EXCEPT !.message = FALSE]
    /\ UNCHANGED <<snapshot, owns, nextToken, followed, seen, faults>>

\* Whoever claims records the message that it holds, in the same script (recorded before, a rollback in between could
\* take the record away), and reads the log; one with a gap is refused (the job ends with LOG_DAMAGED).
Claim(w) ==
    /\ holds[w]
    /\ owns[w] = NoLease
    /\ redis.state = "queued" \/ (redis.state = "running" /\ ~redis.leased)
    /\ nextToken <= MaxClaims
    /\ redis' = [redis EXCEPT !.state = "running", !.epoch = @ + 1, !.token = nextToken, !.leased = TRUE,
                              !.recorded = ~followed]
    /\ owns' = [owns EXCEPT ![w] = [epoch |-> redis.epoch + 1, token |-> nextToken, tail |-> Len(redis.log)]]
    /\ nextToken' = nextToken + 1
    /\ UNCHANGED <<snapshot, holds, followed, seen, faults>>

\* The message of a job that somebody else runs waits with its worker until the job has ended.

IsOwner(w) ==
    /\ redis.state = "running"
    /\ redis.epoch = owns[w].epoch
    /\ CompareToken => redis.token = owns[w].token

Accepts(w) ==
    IF NamePredecessor THEN Last(redis.log) = owns[w].tail
    ELSE Last(redis.log) < owns[w].tail + 1     \* all that XADD itself looks at

WasWritten(w) == Last(redis.log) = owns[w].tail + 1

\* The script writes the next token; its answer may be lost, then the worker tries the same again.
WriteToken(w) ==
    /\ owns[w] # NoLease
    /\ owns[w].tail < NumTokens
    /\ IsOwner(w)
    /\ \/ /\ Accepts(w)
          /\ redis' = [redis EXCEPT !.log = Append(@, owns[w].tail + 1)]
          /\ \/ owns' = [owns EXCEPT ![w].tail = @ + 1]
             \/ UNCHANGED owns              \* the answer is lost
       \/ /\ WasWritten(w)
          /\ owns' = [owns EXCEPT ![w].tail = @ + 1]
          /\ UNCHANGED redis
    /\ UNCHANGED <<snapshot, holds, nextToken, followed, seen, faults>>

\* The log ends elsewhere than the owner thinks: give the job back.
Conflict(w) ==
    /\ owns[w] # NoLease
    /\ IsOwner(w)
    /\ NamePredecessor
    /\ Last(redis.log) # owns[w].tail
    /\ ~(owns[w].tail < NumTokens /\ WasWritten(w))
    /\ redis' = [redis EXCEPT !.state = "queued", !.epoch = @ + 1, !.leased = FALSE, !.message = TRUE]
    /\ owns' = [owns EXCEPT ![w] = NoLease]
    /\ UNCHANGED <<snapshot, holds, nextToken, followed, seen, faults>>

\* Somebody else has the job, or it has ended or is queued again: drop it.
Fenced(w) ==
    /\ owns[w] # NoLease
    /\ ~IsOwner(w)
    /\ owns' = [owns EXCEPT ![w] = NoLease]
    /\ UNCHANGED <<redis, snapshot, holds, nextToken, followed, seen, faults>>

Finish(w) ==
    /\ owns[w] # NoLease
    /\ owns[w].tail = NumTokens
    /\ IsOwner(w)
    /\ NamePredecessor => Last(redis.log) = owns[w].tail
    /\ redis' = [redis EXCEPT !.state = "ended", !.leased = FALSE]
    /\ owns' = [owns EXCEPT ![w] = NoLease]
    /\ UNCHANGED <<snapshot, holds, nextToken, followed, seen, faults>>

Renew(w) ==
    /\ owns[w] # NoLease
    /\ IsOwner(w)
    /\ ~redis.leased
    /\ redis' = [redis EXCEPT !.leased = TRUE]
    /\ UNCHANGED <<snapshot, owns, holds, nextToken, followed, seen, faults>>

\* Warm shutdown: give the job and its message back.
Release(w) ==
    /\ owns[w] # NoLease
    /\ IsOwner(w)
    /\ faults.death < MaxDeaths
    /\ faults' = [faults EXCEPT !.death = @ + 1]
    /\ redis' = [redis EXCEPT !.state = "queued", !.epoch = @ + 1, !.leased = FALSE, !.message = TRUE]
    /\ owns' = [owns EXCEPT ![w] = NoLease]
    /\ holds' = [holds EXCEPT ![w] = FALSE]
    /\ UNCHANGED <<snapshot, nextToken, followed, seen>>

\* The job has ended: store the Celery result and follow the links; only then is the message forgotten.
Follow(w) ==
    /\ holds[w]
    /\ redis.state = "ended"
    /\ followed' = TRUE
    /\ UNCHANGED <<redis, snapshot, owns, holds, nextToken, seen, faults>>

Answered(w) ==
    /\ holds[w]
    /\ redis.state = "ended"
    /\ followed
    /\ holds' = [holds EXCEPT ![w] = FALSE]
    /\ redis' = [redis EXCEPT !.recorded = FALSE]
    /\ UNCHANGED <<snapshot, owns, nextToken, followed, seen, faults>>

\* A worker dies, with what it knew; the others put its unacknowledged messages back.
Die(w) ==
    /\ faults.death < MaxDeaths
    /\ owns[w] # NoLease \/ holds[w]
    /\ faults' = [faults EXCEPT !.death = @ + 1]
    /\ owns' = [owns EXCEPT ![w] = NoLease]
    /\ holds' = [holds EXCEPT ![w] = FALSE]
    /\ redis' = [redis EXCEPT !.message = @ \/ holds[w]]
    /\ UNCHANGED <<snapshot, nextToken, followed, seen>>

-----------------------------------------------------------------------------
(* Everybody's reaper *)

Reap ==
    /\ redis.state = "running"
    /\ ~redis.leased
    /\ redis' = [redis EXCEPT !.state = "queued", !.epoch = @ + 1, !.message = TRUE]
    /\ UNCHANGED <<snapshot, owns, holds, nextToken, followed, seen, faults>>

\* Nobody renews the lease of a worker that died, or of one that Redis has forgotten.
AbandonedLeaseRunsOut ==
    /\ redis.leased
    /\ \A w \in Workers : owns[w] = NoLease \/ ~IsOwner(w)
    /\ redis' = [redis EXCEPT !.leased = FALSE]
    /\ UNCHANGED <<snapshot, owns, holds, nextToken, followed, seen, faults>>

\* A queued job whose message is lost, and an ended one whose recorded message nobody has answered.
Republish ==
    /\ ~redis.message
    /\ \A w \in Workers : ~holds[w]
    /\ redis.state = "queued" \/ (redis.state = "ended" /\ redis.recorded)
    /\ redis' = [redis EXCEPT !.message = TRUE]
    /\ UNCHANGED <<snapshot, owns, holds, nextToken, followed, seen, faults>>

-----------------------------------------------------------------------------
(* A client shows each token once; it refuses a log with a gap. *)

Read ==
    /\ IsWhole(redis.log)
    /\ Len(redis.log) > seen
    /\ seen' = Len(redis.log)
    /\ UNCHANGED <<redis, snapshot, owns, holds, nextToken, followed, faults>>

-----------------------------------------------------------------------------
(* Faults *)

LeaseRunsOut ==
    /\ redis.leased
    /\ faults.lease < MaxLeaseLosses
    /\ faults' = [faults EXCEPT !.lease = @ + 1]
    /\ redis' = [redis EXCEPT !.leased = FALSE]
    /\ UNCHANGED <<snapshot, owns, holds, nextToken, followed, seen>>

LoseMessage ==
    /\ redis.message
    /\ faults.message < MaxLostMessages
    /\ faults' = [faults EXCEPT !.message = @ + 1]
    /\ redis' = [redis EXCEPT !.message = FALSE]
    /\ UNCHANGED <<snapshot, owns, holds, nextToken, followed, seen>>

Save ==
    /\ faults.rollback < MaxRollbacks
    /\ snapshot # redis
    /\ snapshot' = redis
    /\ UNCHANGED <<redis, owns, holds, nextToken, followed, seen, faults>>

Rollback ==
    /\ faults.rollback < MaxRollbacks
    /\ snapshot # redis
    /\ faults' = [faults EXCEPT !.rollback = @ + 1]
    /\ redis' = [snapshot EXCEPT !.leased = FALSE]  \* its time has passed meanwhile, or will
    /\ UNCHANGED <<snapshot, owns, holds, nextToken, followed, seen>>

-----------------------------------------------------------------------------

Next ==
    \/ \E w \in Workers :
        Take(w) \/ Claim(w) \/ WriteToken(w) \/ Conflict(w) \/ Fenced(w) \/ Finish(w) \/ Renew(w) \/ Release(w)
            \/ Follow(w) \/ Answered(w) \/ Die(w)
    \/ AbandonedLeaseRunsOut \/ Reap \/ Republish \/ Read \/ LeaseRunsOut \/ LoseMessage \/ Save \/ Rollback

\* What a worker or a reaper can do for ever, it does at last; faults need not happen.  Renew is not among them: a
\* worker that hangs renews nothing.
Fairness ==
    /\ \A w \in Workers :
        /\ WF_vars(Take(w)) /\ SF_vars(Claim(w)) /\ SF_vars(Finish(w)) /\ WF_vars(Conflict(w))
        /\ WF_vars(Fenced(w)) /\ WF_vars(Follow(w)) /\ WF_vars(Answered(w))
        /\ SF_vars(WriteToken(w) /\ owns' # owns)
    /\ WF_vars(AbandonedLeaseRunsOut) /\ WF_vars(Reap) /\ WF_vars(Republish) /\ WF_vars(Read)

Spec == Init /\ [][Next]_vars /\ Fairness

-----------------------------------------------------------------------------
(* What must hold *)

\* No log has a gap or a repetition, whatever Redis forgot.
LogIsWhole == IsWhole(redis.log)

\* No two workers could both write.
OneOwner ==
    \A v, w \in Workers :
        (v # w /\ owns[v] # NoLease /\ owns[w] # NoLease) => ~(IsOwner(v) /\ IsOwner(w))

\* Nobody reads a log with a gap and goes on from it as if it were whole: that would be a wrong answer.
EndIsRight == redis.state = "ended" => redis.log = [i \in 1..NumTokens |-> i]

\* A client shows every token once: what it has seen only grows (that it never sees a gap is LogIsWhole).
SeenOnlyGrows == [][seen' >= seen]_seen

\* Unless the model's bound on claims is reached, the job ends, its canvas goes on, and the client sees all of it.
Bounded == nextToken > MaxClaims
JobEnds == <>(redis.state = "ended" \/ Bounded)
CanvasGoesOn == <>(followed \/ Bounded)
ClientSeesAll == <>(seen = NumTokens \/ Bounded)
=============================================================================
