/*
 * A process of N threads, one of which works: it wakes every half millisecond and notes how long it was since the last
 * time. The others sleep. For each line on standard input: the longest time since the line before, in microseconds.
 *
 *   held N
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static atomic_long longest;

static long now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000 + at.tv_nsec / 1000;
}

static void *work(void *unused)
{
	const struct timespec pause = {0, 500000};
	long last = now();

	for (;;) {
		long at, gap;

		nanosleep(&pause, NULL);
		at = now();
		gap = at - last;
		last = at;
		if (gap > longest)
			longest = gap;
	}
	return unused;
}

static void *rest(void *unused)
{
	for (;;)
		pause();
	return unused;
}

int main(int count, char **words)
{
	int threads = count > 1 ? atoi(words[1]) : 2;
	pthread_attr_t small;
	pthread_t thread;
	char line[80];

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	for (int number = 1; number < threads; number++)
		if (pthread_create(&thread, &small, number == 1 ? work : rest, NULL))
			return 1;
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		printf("%ld\n", atomic_exchange(&longest, 0));
		fflush(stdout);
	}
	return 0;
}
