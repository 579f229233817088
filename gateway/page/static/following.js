// Keeps the end of a growing answer in view until the reader scrolls up.

import { useCallback, useEffect, useRef, useState } from "./vendor/htm-preact.js";

const MARGIN = 32;

/** `[following, jump]` for the element in `ref`, which grows while `active`. */
export function useFollowing(ref, active) {
  const [following, setFollowing] = useState(true);
  const now = useRef(true);

  const set = (value) => {
    now.current = value;
    setFollowing(value);
  };
  const below = () => (ref.current?.getBoundingClientRect().bottom ?? 0) + MARGIN - innerHeight;
  const keep = () => {
    if (now.current && below() > 1) scrollBy({ top: below(), behavior: "instant" });
  };

  useEffect(() => {
    if (!active || !ref.current) return undefined;
    let last = scrollY;
    const onScroll = () => {
      if (below() <= MARGIN) set(true);
      else if (scrollY < last - 1) set(false);
      last = scrollY;
    };
    const grown = new ResizeObserver(keep);
    grown.observe(ref.current);
    addEventListener("scroll", onScroll, { passive: true });
    return () => {
      keep(); // for the last text, and the final status
      grown.disconnect();
      removeEventListener("scroll", onScroll);
    };
  }, [active, ref.current]);

  const jump = useCallback(() => {
    set(true);
    keep();
  }, []);
  return [following, jump];
}
