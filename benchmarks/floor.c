/*
 * The floor: who blocks, by the best algorithm for each interface and nothing else. No error is told from another, no
 * process is described, nothing is allocated per task.
 *
 *     floor kgraft|livepatch PROC [TARGET]
 *
 * For each line on standard input it walks PROC once and answers with one line: seconds of processor time, then the
 * blocking pids.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct entry {
	unsigned long long inode;
	long long offset;
	unsigned short length;
	unsigned char type;
	char name[];
};

static const char *file;
static char crossed; /* what a task shows that does not block */
static char found[1 << 16];
static size_t used;

static int shows(int directory, const char *name, const char *tail)
{
	char path[64], value[8];
	int descriptor, length;

	strcpy(stpcpy(stpcpy(path, name), tail), file);
	descriptor = openat(directory, path, O_RDONLY);
	if (descriptor < 0)
		return -1;
	length = read(descriptor, value, sizeof(value));
	close(descriptor);
	return length > 0 ? value[0] : -1;
}

static int blocks(int flag)
{
	return flag >= 0 && flag != '-' && flag != crossed;
}

/* Calls each(directory, name) for every number in a directory; returns the sum of the answers. */
static int numbers(int directory, int (*each)(int, const char *))
{
	char buffer[1 << 16];
	long length;
	int sum = 0;

	while ((length = syscall(SYS_getdents64, directory, buffer, sizeof(buffer))) > 0) {
		for (long at = 0; at < length;) {
			struct entry *entry = (struct entry *)(buffer + at);

			if (entry->name[0] >= '0' && entry->name[0] <= '9')
				sum += each(directory, entry->name);
			at += entry->length;
		}
	}
	return sum;
}

static int thread(int directory, const char *name)
{
	return blocks(shows(directory, name, "/"));
}

static int threads(int directory, const char *pid)
{
	char path[64];
	int tasks, count;

	strcpy(stpcpy(path, pid), "/task");
	tasks = openat(directory, path, O_RDONLY | O_DIRECTORY);
	if (tasks < 0)
		return 0;
	count = numbers(tasks, thread);
	close(tasks);
	if (count && used < sizeof(found) - 16)
		used += sprintf(found + used, " %s", pid);
	return count;
}

/* kGraft's pid file is 1 if any thread is flagged: threads are read only there. */
static int kgraft(int directory, const char *pid)
{
	return shows(directory, pid, "/") == '1' ? threads(directory, pid) : 0;
}

int main(int argc, char **argv)
{
	int is_kgraft = argc > 2 && !strcmp(argv[1], "kgraft");

	if (argc < 3)
		return 2;
	file = is_kgraft ? "kgr_in_progress" : "patch_state";
	crossed = is_kgraft ? '0' : argc > 3 ? argv[3][0] : '1';
	while (getchar() != EOF) {
		struct timespec begin, end;
		int directory;

		used = 0;
		clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
		directory = open(argv[2], O_RDONLY | O_DIRECTORY);
		if (directory < 0)
			return 1;
		numbers(directory, is_kgraft ? kgraft : threads);
		close(directory);
		clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
		found[used] = 0;
		printf("%.9f%s\n", (end.tv_sec - begin.tv_sec) + (end.tv_nsec - begin.tv_nsec) / 1e9, found);
		fflush(stdout);
	}
	return 0;
}
