// The client's calls for schedules: `jobs.schedules`.

import { newKey } from "./crypto.js";
import { ScheduleNotFound } from "./errors.js";
import { inPages } from "./pages.js";
import { given, jsonBytes } from "./prompts.js";
import * as shapes from "./shapes.js";

/** @typedef {import("../types/contracts.js").Schedule} Schedule */
/** @typedef {import("../types/contracts.js").SchedulePage} SchedulePage */
/** @typedef {import("../types/contracts.js").ChatRequest} ChatRequest */
/** @typedef {{ signal?: AbortSignal | null }} Signal */

/**
 * @typedef {object} ScheduleOptions
 * @property {string} [id] the schedule's id; one that exists is replaced
 * @property {string} [cron] a cron expression, in `timezone`; or `every`
 * @property {number | string} [every] seconds, `"15m"`, `"PT15M"`; or `cron`
 * @property {string} [timezone] the IANA name of a time zone
 * @property {import("../types/contracts.js").ScheduleOverlap} [overlap]
 * @property {number} [catchupSeconds]
 * @property {import("../types/contracts.js").BatchRequest} [batch] the body of each batch, in place of `request`
 * @property {AbortSignal | null} [signal]
 */

const PATH = "/api/schedules";

/** Requests that become a job again and again. Methods throw what ChatJobs throws, and the errors that they name. */
export class Schedules {
  #http;

  /** @param {import("./calls.js").Http} http */
  constructor(http) {
    this.#http = http;
  }

  /**
   * Make a schedule, or replace the one with this `id`; it is durable once this returns.
   *
   * `request` is the body of each job, `batch` that of each batch: one of them. Throws InvalidRequest,
   * WebhookUrlRefused.
   * @param {ChatRequest | null} request
   * @param {ScheduleOptions} options
   * @returns {Promise<Schedule>}
   */
  async create(request, { signal, ...options }) {
    // The id is made here, so that a repeated call makes one schedule.
    const body = given({ ...options, id: options.id ?? `schedule_${await newKey()}`, request });
    return this.#http.read(shapes.Schedule, "POST", PATH, { body: jsonBytes(body), signal });
  }

  /**
   * Schedules by their ids, without what they ask, with their next times and last jobs.
   * @param {{ pageSize?: number, signal?: AbortSignal | null }} [options]
   * @returns {AsyncGenerator<Schedule, void, void>}
   */
  async *list({ pageSize = 100, signal } = {}) {
    yield* inPages((cursor) => this.page({ limit: pageSize, cursor, signal }), "schedules");
  }

  /**
   * One page of `list`, at most `limit` schedules; a page's `nextCursor` is the `cursor` of the next one. For user
   * interfaces.
   * @param {{ limit?: number, cursor?: string | null, signal?: AbortSignal | null }} [options]
   * @returns {Promise<SchedulePage>}
   */
  async page({ limit = 100, cursor, signal } = {}) {
    const query = given({ limit: String(limit), cursor });
    return this.#http.read(shapes.SchedulePage, "GET", PATH, { query, signal });
  }

  /**
   * Throws ScheduleNotFound.
   * @param {string} scheduleId
   * @param {Signal} [options]
   * @returns {Promise<Schedule>}
   */
  async get(scheduleId, { signal } = {}) {
    return this.#http.read(shapes.Schedule, "GET", path(scheduleId), { signal });
  }

  /**
   * Start no more runs. `note` says why, for people. Throws ScheduleNotFound.
   * @param {string} scheduleId
   * @param {{ note?: string, signal?: AbortSignal | null }} [options]
   * @returns {Promise<Schedule>}
   */
  async pause(scheduleId, options) {
    return this.#noted(scheduleId, "pause", options);
  }

  /**
   * Start runs again; those of the pause are not made up for. Throws ScheduleNotFound.
   * @param {string} scheduleId
   * @param {{ note?: string, signal?: AbortSignal | null }} [options]
   * @returns {Promise<Schedule>}
   */
  async resume(scheduleId, options) {
    return this.#noted(scheduleId, "resume", options);
  }

  /**
   * Start a run now; its job is the first of `lastRuns` soon. A call that is repeated because its answer was lost may
   * start two. Throws ScheduleNotFound.
   * @param {string} scheduleId
   * @param {Signal} [options]
   * @returns {Promise<Schedule>}
   */
  async trigger(scheduleId, { signal } = {}) {
    return this.#http.read(shapes.Schedule, "POST", `${path(scheduleId)}/trigger`, { signal });
  }

  /**
   * Delete the schedule; its jobs stay. Throws ScheduleNotFound.
   * @param {string} scheduleId
   * @param {Signal} [options]
   * @returns {Promise<void>}
   */
  async delete(scheduleId, { signal } = {}) {
    await this.#http.call("DELETE", path(scheduleId), { signal });
  }

  /**
   * @param {string} scheduleId
   * @param {"pause" | "resume"} change
   * @param {{ note?: string, signal?: AbortSignal | null }} [options]
   */
  async #noted(scheduleId, change, { note, signal } = {}) {
    const body = jsonBytes(given({ note }));
    return this.#http.read(shapes.Schedule, "POST", `${path(scheduleId)}/${change}`, { body, signal });
  }
}

/**
 * Throws ScheduleNotFound for a text that cannot be an id.
 * @param {string} scheduleId
 */
function path(scheduleId) {
  if (!/^[A-Za-z0-9_-]{1,64}$/.test(scheduleId)) throw new ScheduleNotFound();
  return `${PATH}/${scheduleId}`;
}
