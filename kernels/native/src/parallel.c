#define _GNU_SOURCE
#include "parallel.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    /* A helper without work looks for some this often before it sleeps, for a fraction of a millisecond:
       longer than from one kernel of a step to the next. The caller waits as often for parts that
       others compute. */
    SPINS = 10000
};

struct Parts {
    int alone;
    uint64_t job_number;
    long next; /* alone: the next part; else the part claimed beforehand, or -1 */
    long n;
    long taken; /* not alone: how many parts were claimed */
};

/* The job in progress. Its fields are written while no part of it can be claimed. */
static struct {
    /* Number of the job (high half) and its next part (low half): one word, so that a part is claimed
       of the job that was looked at or not at all. Odd numbers are no job: fields are being written. */
    _Atomic uint64_t ticket;
    _Atomic long n;
    _Atomic int helpers; /* how many may take part */
    _Atomic(Work) work;
    _Atomic(void *) job;
    _Atomic uint32_t done __attribute__((aligned(64))); /* parts computed; a futex */
    _Atomic int caller_sleeps;
    _Atomic uint32_t published __attribute__((aligned(64))); /* changes with every job; a futex */
    _Atomic int sleepers;
} team;

static pthread_mutex_t occupied = PTHREAD_MUTEX_INITIALIZER;
static int n_helpers = 0;       /* under `occupied` */
static pid_t helpers_owner = 0; /* under `occupied`: threads do not outlive a fork */

static void sleep_while(_Atomic uint32_t *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake_all(_Atomic uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0); }

/* Claims a part of job `number`. */
static int claim(uint64_t number, long n, long *part) {
    uint64_t ticket = atomic_load_explicit(&team.ticket, memory_order_acquire);
    do {
        if (ticket >> 32 != number || (long)(ticket & 0xffffffffu) >= n) return 0;
    } while (!atomic_compare_exchange_weak_explicit(&team.ticket, &ticket, ticket + 1, memory_order_acq_rel,
                                                    memory_order_acquire));
    *part = (long)(ticket & 0xffffffffu);
    return 1;
}

int next_part(Parts *parts, long *part) {
    if (parts->alone) {
        *part = parts->next;
        return parts->next++ < parts->n;
    }
    if (parts->next >= 0) { /* claimed before the work began */
        *part = parts->next;
        parts->next = -1;
        return 1;
    }
    if (!claim(parts->job_number, parts->n, part)) return 0;
    parts->taken++;
    return 1;
}

/* Takes part in the job on the board, if a part is left. */
static int help(int helper) {
    const uint64_t ticket = atomic_load_explicit(&team.ticket, memory_order_acquire);
    Parts parts = {0, ticket >> 32, -1, atomic_load_explicit(&team.n, memory_order_relaxed), 1};
    const Work work = atomic_load_explicit(&team.work, memory_order_relaxed);
    void *job = atomic_load_explicit(&team.job, memory_order_relaxed);
    if (helper >= atomic_load_explicit(&team.helpers, memory_order_relaxed)) return 0;
    /* Fields of another job may have been read; then the claim fails. */
    if (!claim(parts.job_number, parts.n, &parts.next)) return 0;
    work(job, &parts);
    const uint32_t taken = (uint32_t)parts.taken;
    atomic_fetch_add(&team.done, taken);
    if (atomic_load(&team.caller_sleeps)) wake_all(&team.done);
    return 1;
}

static void *helper_main(void *argument) {
    const int helper = (int)(intptr_t)argument;
    for (;;) {
        const uint32_t seen = atomic_load(&team.published);
        int spins = 0;
        while (!help(helper) && spins++ < SPINS) _mm_pause();
        if (spins <= SPINS) continue;
        atomic_fetch_add(&team.sleepers, 1);
        sleep_while(&team.published, seen);
        atomic_fetch_sub(&team.sleepers, 1);
    }
    return NULL;
}

static void start_helpers(int wanted) {
    if (helpers_owner != getpid()) {
        n_helpers = 0;
        helpers_owner = getpid();
    }
    if (n_helpers >= wanted) return;
    /* Signals are for the threads of the interpreter. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    while (n_helpers < wanted && !pthread_create(&thread, NULL, helper_main, (void *)(intptr_t)n_helpers)) {
        pthread_setname_np(thread, "kernels");
        pthread_detach(thread);
        n_helpers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void in_parallel(int threads, long n, Work work, void *job) {
    if (threads <= 1 || n <= 1 || n > INT32_MAX || pthread_mutex_trylock(&occupied)) {
        Parts alone = {1, 0, 0, n, 0};
        if (n > 0) work(job, &alone);
        return;
    }
    start_helpers(threads - 1);
    const uint64_t number = ((atomic_load(&team.ticket) >> 32) + 2) & 0xffffffffu;
    atomic_store(&team.ticket, (number - 1) << 32 | 0xffffffffu);
    atomic_store(&team.n, n);
    atomic_store(&team.helpers, threads - 1);
    atomic_store(&team.work, work);
    atomic_store(&team.job, job);
    atomic_store(&team.done, 0);
    atomic_store(&team.ticket, number << 32);
    atomic_fetch_add(&team.published, 1);
    if (atomic_load(&team.sleepers)) wake_all(&team.published);

    Parts parts = {0, number, -1, n, 0};
    work(job, &parts);
    const uint32_t missing = (uint32_t)(n - parts.taken);
    for (int spins = 0; atomic_load(&team.done) != missing;) {
        if (spins++ < SPINS) {
            _mm_pause();
            continue;
        }
        atomic_store(&team.caller_sleeps, 1);
        const uint32_t done = atomic_load(&team.done);
        if (done != missing) sleep_while(&team.done, done);
        atomic_store(&team.caller_sleeps, 0);
    }
    pthread_mutex_unlock(&occupied);
}

typedef struct {
    RowWork work;
    const void *job;
    long rows, rows_per_part;
} RowJob;

static void row_parts(void *job, Parts *parts) {
    const RowJob j = *(const RowJob *)job;
    for (long part; next_part(parts, &part);) {
        const long first = part * j.rows_per_part, left = j.rows - first;
        j.work(j.job, first, first + (left < j.rows_per_part ? left : j.rows_per_part));
    }
}

void rows_in_parallel(int threads, long rows, long row_bytes, RowWork work, const void *job) {
    enum { WORTHWHILE_BYTES = 1 << 16, PARTS_PER_THREAD = 4 };
    if (threads <= 1 || rows * row_bytes <= WORTHWHILE_BYTES) {
        work(job, 0, rows);
        return;
    }
    const long wanted = (long)threads * PARTS_PER_THREAD;
    RowJob parts = {work, job, rows, (rows + wanted - 1) / wanted};
    in_parallel(threads, (rows + parts.rows_per_part - 1) / parts.rows_per_part, row_parts, &parts);
}
