/** Requests that become a job again and again. Methods throw what ChatJobs throws, and the errors that they name. */
export class Schedules {
    /** @param {import("./calls.js").Http} http */
    constructor(http: import("./calls.js").Http);
    /**
     * Make a schedule, or replace the one with this `id`; it is durable once this returns.
     *
     * `request` is the body of each job, `batch` that of each batch: one of them. Throws InvalidRequest,
     * WebhookUrlRefused.
     * @param {ChatRequest | null} request
     * @param {ScheduleOptions} options
     * @returns {Promise<Schedule>}
     */
    create(request: ChatRequest | null, { signal, ...options }: ScheduleOptions): Promise<Schedule>;
    /**
     * Schedules by their ids, without what they ask, with their next times and last jobs.
     * @param {{ pageSize?: number, signal?: AbortSignal | null }} [options]
     * @returns {AsyncGenerator<Schedule, void, void>}
     */
    list({ pageSize, signal }?: {
        pageSize?: number;
        signal?: AbortSignal | null;
    }): AsyncGenerator<Schedule, void, void>;
    /**
     * One page of `list`, at most `limit` schedules; a page's `nextCursor` is the `cursor` of the next one. For user
     * interfaces.
     * @param {{ limit?: number, cursor?: string | null, signal?: AbortSignal | null }} [options]
     * @returns {Promise<SchedulePage>}
     */
    page({ limit, cursor, signal }?: {
        limit?: number;
        cursor?: string | null;
        signal?: AbortSignal | null;
    }): Promise<SchedulePage>;
    /**
     * Throws ScheduleNotFound.
     * @param {string} scheduleId
     * @param {Signal} [options]
     * @returns {Promise<Schedule>}
     */
    get(scheduleId: string, { signal }?: Signal): Promise<Schedule>;
    /**
     * Start no more runs. `note` says why, for people. Throws ScheduleNotFound.
     * @param {string} scheduleId
     * @param {{ note?: string, signal?: AbortSignal | null }} [options]
     * @returns {Promise<Schedule>}
     */
    pause(scheduleId: string, options?: {
        note?: string;
        signal?: AbortSignal | null;
    }): Promise<Schedule>;
    /**
     * Start runs again; those of the pause are not made up for. Throws ScheduleNotFound.
     * @param {string} scheduleId
     * @param {{ note?: string, signal?: AbortSignal | null }} [options]
     * @returns {Promise<Schedule>}
     */
    resume(scheduleId: string, options?: {
        note?: string;
        signal?: AbortSignal | null;
    }): Promise<Schedule>;
    /**
     * Start a run now; its job is the first of `lastRuns` soon. A call that is repeated because its answer was lost may
     * start two. Throws ScheduleNotFound.
     * @param {string} scheduleId
     * @param {Signal} [options]
     * @returns {Promise<Schedule>}
     */
    trigger(scheduleId: string, { signal }?: Signal): Promise<Schedule>;
    /**
     * Delete the schedule; its jobs stay. Throws ScheduleNotFound.
     * @param {string} scheduleId
     * @param {Signal} [options]
     * @returns {Promise<void>}
     */
    delete(scheduleId: string, { signal }?: Signal): Promise<void>;
    #private;
}
export type Schedule = import("../types/contracts.js").Schedule;
export type SchedulePage = import("../types/contracts.js").SchedulePage;
export type ChatRequest = import("../types/contracts.js").ChatRequest;
export type Signal = {
    signal?: AbortSignal | null;
};
export type ScheduleOptions = {
    /**
     * the schedule's id; one that exists is replaced
     */
    id?: string | undefined;
    /**
     * a cron expression, in `timezone`; or `every`
     */
    cron?: string | undefined;
    /**
     * seconds, `"15m"`, `"PT15M"`; or `cron`
     */
    every?: string | number | undefined;
    /**
     * the IANA name of a time zone
     */
    timezone?: string | undefined;
    overlap?: import("../types/contracts.js").ScheduleOverlap | undefined;
    catchupSeconds?: number | undefined;
    /**
     * the body of each batch, in place of `request`
     */
    batch?: import("../types/contracts.js").BatchRequest | undefined;
    signal?: AbortSignal | null | undefined;
};
