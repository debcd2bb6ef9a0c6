/* The threads that kernels share.

   A job is a number of parts that any thread may compute, in any order. The caller computes parts
   itself and waits only for those that another thread has begun: a helper that the system has taken
   off its processor, or that sleeps, costs time but holds nobody up. (OpenMP's barrier waits for
   every thread. Replicas of one node share its cores with each other and with the processes that
   carry their requests, and lose half of their speed to that.) */
#ifndef EXPERTMESH_PARALLEL_H
#define EXPERTMESH_PARALLEL_H

/* One thread's share of a job. */
typedef struct Parts Parts;

/* Computes parts of `job` until there are none; runs on each thread that has got a part. */
typedef void (*Work)(void *job, Parts *parts);

/* The next part to compute, or 0 when none is left; the one before is finished by then. */
int next_part(Parts *parts, long *part);

/* Returns when parts 0 .. n - 1 are computed, on at most `threads` threads, the caller's among them.
   Callers on several threads are let in one at a time; one that finds it occupied works alone. */
void in_parallel(int threads, long n, Work work, void *job);

/* Computes rows `first` .. `end` - 1 of `job`. */
typedef void (*RowWork)(const void *job, long first, long end);

/* The same for `rows` rows that cost `row_bytes` each: alone where another thread is not worth its while. */
void rows_in_parallel(int threads, long rows, long row_bytes, RowWork work, const void *job);

#endif
