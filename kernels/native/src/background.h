/* Work that must not slow down what decodes meanwhile. */
#ifndef EXPERTMESH_BACKGROUND_H
#define EXPERTMESH_BACKGROUND_H

/* Runs `work` on a thread of low priority and waits for it. The caller keeps its own priority: a thread
   that lowered its own could not raise it again, and would hold the interpreter's lock while the system
   lets others run. Where there can be no further thread the caller does the work. */
void in_background(void (*work)(void *job), void *job);

#endif
