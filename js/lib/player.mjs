// Several videos of equal length as one: the first leads, the others follow it frame by frame.

/** Frame (0 ..) that a video shows at `time` seconds. */
export function frameAt(time, fps, frames) {
  return Math.min(frames - 1, Math.max(0, Math.floor(time * fps + 1e-3)))
}

/** Time in the middle of a frame: its start may be rounded to the frame before. */
export function timeOf(frame, fps) {
  return (frame + 0.5) / fps
}

export class Player {
  /**
   * @param {HTMLVideoElement[]} videos muted, of equal length
   * @param {number} fps
   * @param {number} frames
   * @param {() => void} changed called when frame, playing or loop have changed
   */
  constructor(videos, fps, frames, changed) {
    Object.assign(this, { videos, fps, frames, changed })
    this.loop = true
    this.playing = false
    this.wanted = 0 // the frame that is shown while nothing plays
    this.request = 0
  }

  get leader() {
    return this.videos[0]
  }

  get frame() {
    return this.playing ? frameAt(this.leader.currentTime, this.fps, this.frames) : this.wanted
  }

  /** Show one frame in all videos, paused. */
  seek(frame) {
    this.pause()
    this.wanted = Math.min(this.frames - 1, Math.max(0, frame))
    for (const video of this.videos) video.currentTime = timeOf(this.wanted, this.fps)
    this.changed()
  }

  step(by) {
    this.seek(this.frame + by)
  }

  async play() {
    if (this.playing) return
    if (this.wanted >= this.frames - 1) this.#all(0)
    this.playing = true
    this.changed()
    try {
      await Promise.all(this.videos.map((video) => video.play()))
    } catch (error) {
      // pausing before play() has begun is no failure
      if (error.name !== 'AbortError') this.pause()
      return
    }
    this.#follow()
  }

  pause() {
    if (!this.playing) return
    this.wanted = this.frame
    this.playing = false
    cancelAnimationFrame(this.request)
    for (const video of this.videos) {
      video.pause()
      video.currentTime = timeOf(this.wanted, this.fps)
    }
    this.changed()
  }

  toggle() {
    return this.playing ? this.pause() : this.play()
  }

  setLoop(on) {
    this.loop = on
    this.changed()
  }

  dispose() {
    this.pause()
    for (const video of this.videos) {
      video.removeAttribute('src')
      video.load()
    }
  }

  #all(time) {
    for (const video of this.videos) video.currentTime = time
  }

  /** Once per picture of the screen: keep the others within half a frame, and turn round. */
  #follow() {
    if (!this.playing) return
    if (this.leader.ended) {
      if (!this.loop) {
        this.pause()
        return
      }
      this.#all(0)
      for (const video of this.videos) video.play().catch(() => this.pause())
    }
    for (const video of this.videos.slice(1)) {
      const behind = this.leader.currentTime - video.currentTime
      if (Math.abs(behind) > 0.5 / this.fps && !video.seeking) {
        video.currentTime = this.leader.currentTime
      }
      if (video.ended || video.paused) video.play().catch(() => {})
    }
    this.changed()
    this.request = requestAnimationFrame(() => this.#follow())
  }
}
