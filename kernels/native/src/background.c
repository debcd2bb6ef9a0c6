#define _GNU_SOURCE
#include "background.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common.h"

enum {
    NICE = 15 /* about a thirtieth of a thread that wants the same core */
};

typedef struct {
    void (*work)(void *job);
    void *job;
} Task;

static void *background_main(void *argument) {
    const Task *task = argument;
    /* Of this thread alone, on Linux. */
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), NICE);
    task->work(task->job);
    return NULL;
}

void in_background(void (*work)(void *job), void *job) {
    Task task = {work, job};
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    const int failed = pthread_create(&thread, NULL, background_main, &task);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed)
        work(job);
    else
        pthread_join(thread, NULL);
}

typedef struct {
    const char *path;
    long offset, n;
    char *to;
    int problem;
} FileRead;

static void read_file(void *job) {
    FileRead *r = job;
    const int file = open(r->path, O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        r->problem = errno;
        return;
    }
    while (r->n > 0) {
        const ssize_t done = pread(file, r->to, (size_t)r->n, r->offset);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) {
            r->problem = done < 0 ? errno : -1;
            break;
        }
        r->to += done;
        r->offset += done;
        r->n -= done;
    }
    close(file);
}

/* Bytes `offset` .. `offset` + n - 1 of a file, read in the background: 0, an errno, or -1 when it ends early. */
API int expertmesh_read(const char *path, long offset, long n, void *to) {
    FileRead job = {path, offset, n, to, 0};
    in_background(read_file, &job);
    return job.problem;
}
