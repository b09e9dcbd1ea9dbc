// The viewer of Compare Videos: wipe, side by side and difference of clips that play in sync.

import { addStyle, make } from './elements.mjs'
import { Player } from './player.mjs'

export const MODES = { wipe: 'Wipe', side: 'Side by side', difference: 'Difference' }

const STYLE = `
.reweave-compare { display: flex; flex-direction: column; gap: 4px; width: 100%; height: 100%;
  min-height: 0; box-sizing: border-box; color: var(--input-text, #ddd); font: 12px sans-serif;
  outline: none; user-select: none; }
.reweave-compare:focus-visible { box-shadow: 0 0 0 2px var(--p-primary-color, #4a9eff); }
.reweave-compare [hidden] { display: none !important; }
.reweave-stage { position: relative; flex: 1 1 0; min-height: 220px; overflow: hidden;
  background: #000; display: grid; grid-auto-rows: 1fr; grid-auto-columns: 1fr;
  touch-action: none; isolation: isolate; }
.reweave-stage figure { position: relative; margin: 0; min-width: 0; min-height: 0; }
.reweave-stage video { position: absolute; inset: 0; width: 100%; height: 100%;
  object-fit: contain; }
.reweave-stage figcaption { position: absolute; top: 2px; left: 4px; padding: 0 4px;
  background: #0009; color: #fff; border-radius: 3px; pointer-events: none; }
.reweave-stage[data-mode="wipe"] figure, .reweave-stage[data-mode="difference"] figure {
  grid-area: 1 / 1; }
.reweave-stage[data-mode="wipe"] { cursor: ew-resize; }
.reweave-stage[data-mode="wipe"] figure.right { clip-path: inset(0 0 0 var(--wipe)); }
.reweave-stage[data-mode="wipe"] figure.right figcaption { left: auto; right: 4px; }
.reweave-stage[data-mode="difference"] { filter: brightness(4); }
.reweave-stage[data-mode="difference"] figure.right { mix-blend-mode: difference; }
.reweave-stage[data-mode="difference"] figcaption { display: none; }
.reweave-stage[data-mode="side"] { grid-auto-flow: column; gap: 2px; }
.reweave-stage[data-mode="side"].many { grid-template-columns: 1fr 1fr; grid-auto-flow: row; }
.reweave-line { position: absolute; top: 0; bottom: 0; left: var(--wipe); width: 2px;
  margin-left: -1px; background: #fff; box-shadow: 0 0 3px #000; pointer-events: none; }
.reweave-bar { display: flex; flex-wrap: wrap; gap: 4px; align-items: center; }
.reweave-bar button, .reweave-bar select { background: var(--comfy-input-bg, #222);
  color: inherit; border: 1px solid var(--border-color, #555); border-radius: 4px; font: inherit;
  padding: 1px 6px; cursor: pointer; max-width: 8em; }
.reweave-bar button[aria-pressed="true"] { background: var(--p-primary-color, #2f6fb5);
  color: #fff; }
.reweave-bar input[type="range"] { flex: 1 1 60px; min-width: 40px; }
.reweave-bar output { font-variant-numeric: tabular-nums; min-width: 5em; text-align: right; }
.reweave-note { padding: 8px; }
`

function press(button, on) {
  button.setAttribute('aria-pressed', String(on))
}

export class Viewer {
  constructor() {
    addStyle('reweave-compare-style', STYLE)
    this.mode = 'wipe'
    this.pair = [0, 1]
    this.player = null
    this.note = make('div', {
      className: 'reweave-note',
      textContent: 'Queue the graph to compare the clips.'
    })
    this.stage = make('div', { className: 'reweave-stage' })
    this.line = make('div', { className: 'reweave-line' })
    this.bars = this.#controls()
    this.element = make(
      'div',
      { className: 'reweave-compare', tabIndex: 0, attributes: { 'aria-label': 'compare videos' } },
      this.note,
      this.stage,
      ...this.bars
    )
    this.#listen()
    this.setWipe(0.5)
    this.#refresh()
  }

  /**
   * @param {{url: string, label: string, frames: number, fps: number}[]} clips two or more
   */
  show(clips) {
    this.player?.dispose()
    this.clips = clips
    this.pair = [0, Math.min(1, clips.length - 1)]
    this.figures = clips.map(({ url, label }) => {
      const video = make('video', { muted: true, playsInline: true, preload: 'auto', src: url })
      video.addEventListener('error', () => this.#fail(label))
      return make('figure', {}, video, make('figcaption', { textContent: label }))
    })
    this.stage.replaceChildren(...this.figures, this.line)
    const videos = this.figures.map((figure) => figure.querySelector('video'))
    const { fps, frames } = clips[0]
    this.player = new Player(videos, fps, frames, () => this.#refresh())
    this.seekbar.max = frames - 1
    this.lists.forEach((list, side) => {
      const options = clips.map(({ label }, value) => make('option', { value, textContent: label }))
      list.replaceChildren(...options)
      list.value = this.pair[side]
    })
    this.note.hidden = true
    this.player.seek(0)
  }

  /** Make the element useless: its videos let go of their files. */
  dispose() {
    this.observer.disconnect()
    this.player?.dispose()
  }

  setMode(mode) {
    this.mode = mode
    this.#refresh()
  }

  setWipe(share) {
    this.wipe = Math.min(1, Math.max(0, share))
    this.stage.style.setProperty('--wipe', `${this.wipe * 100}%`)
    this.slider.value = Math.round(this.wipe * 100)
  }

  setPair(side, number) {
    this.pair[side] = number
    this.#refresh()
  }

  /** Returns whether the key was meant for the viewer. */
  key(name) {
    const player = this.player
    if (!player) return false
    const actions = {
      ' ': () => player.toggle(),
      ArrowLeft: () => player.step(-1),
      ArrowRight: () => player.step(1),
      ',': () => player.step(-1),
      '.': () => player.step(1),
      Home: () => player.seek(0),
      End: () => player.seek(player.frames - 1),
      l: () => player.setLoop(!player.loop),
      1: () => this.setMode('wipe'),
      2: () => this.setMode('side'),
      3: () => this.setMode('difference')
    }
    const action = actions[name.length === 1 ? name.toLowerCase() : name]
    action?.()
    return Boolean(action)
  }

  #controls() {
    const button = (action, textContent, title, click) => {
      const made = make('button', { type: 'button', textContent, title, data: { action } })
      made.addEventListener('click', click)
      return made
    }
    this.modes = Object.entries(MODES).map(([mode, text], at) =>
      button(mode, text, `${text} (${at + 1})`, () => this.setMode(mode))
    )
    this.lists = ['Left', 'Right'].map((title, side) => {
      const list = make('select', { title, attributes: { 'aria-label': `${title} clip` } })
      list.addEventListener('change', () => this.setPair(side, Number(list.value)))
      return list
    })
    this.playButton = button('play', '\u25b6', 'Play or pause (Space)', () => this.player?.toggle())
    this.loopButton = button('loop', 'Loop', 'Start again at the end (L)', () =>
      this.player?.setLoop(!this.player.loop)
    )
    const back = button('back', '\u2190', 'One frame back', () => this.player?.step(-1))
    const forward = button('forward', '\u2192', 'One frame forward', () => this.player?.step(1))
    this.slider = this.#range('wipe between the clips', 100, (value) => this.setWipe(value / 100))
    this.seekbar = this.#range('frame', 0, (value) => this.player?.seek(value))
    this.counter = make('output')
    return [
      make('div', { className: 'reweave-bar' }, ...this.modes, ...this.lists, this.slider),
      make(
        'div',
        { className: 'reweave-bar' },
        ...[back, this.playButton, forward, this.loopButton, this.seekbar, this.counter]
      )
    ]
  }

  #range(label, max, changed) {
    const range = make('input', { type: 'range', min: 0, max, attributes: { 'aria-label': label } })
    range.addEventListener('input', () => changed(Number(range.value)))
    return range
  }

  #listen() {
    this.element.addEventListener('keydown', (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return
      // a focused list or slider keeps its own keys
      if (event.target.matches('select, input') && event.key.startsWith('Arrow')) return
      if (event.target.matches('button, select') && event.key === ' ') return
      if (this.key(event.key)) {
        event.preventDefault()
        event.stopPropagation() // or the graph would act on it too
      }
    })
    const drag = (event) => {
      if (this.mode !== 'wipe' || !(event.buttons & 1)) return
      const { left, width } = this.stage.getBoundingClientRect()
      this.setWipe((event.clientX - left) / width)
    }
    this.stage.addEventListener('pointerdown', (event) => {
      this.element.focus({ preventScroll: true })
      this.stage.setPointerCapture(event.pointerId)
      drag(event)
    })
    this.stage.addEventListener('pointermove', drag)
    for (const kind of ['pointerdown', 'pointermove']) {
      this.element.addEventListener(kind, (event) => {
        if (event.buttons & 1) event.stopPropagation() // or the node would be dragged
      })
    }
    this.observer = new IntersectionObserver(([entry]) => {
      if (!entry.isIntersecting) this.player?.pause()
    })
    this.observer.observe(this.stage)
  }

  #fail(label) {
    this.player?.pause()
    this.note.textContent = `"${label}" cannot be played: the file is gone. Queue the graph again.`
    this.note.hidden = false
  }

  #refresh() {
    const player = this.player
    this.stage.dataset.mode = this.mode
    this.stage.hidden = !player
    for (const bar of this.bars) bar.hidden = !player
    if (!player) return
    const side = this.mode === 'side'
    this.figures.forEach((figure, number) => {
      figure.hidden = !side && !this.pair.includes(number)
      figure.classList.toggle('right', !side && number === this.pair[1] && this.pair[0] !== number)
      figure.style.order = number
      figure.style.zIndex = number === this.pair[1] ? 1 : 0
    })
    this.stage.classList.toggle('many', this.figures.length > 2)
    this.line.style.zIndex = 2
    this.line.hidden = this.slider.hidden = this.mode !== 'wipe'
    for (const list of this.lists) list.hidden = side || this.clips.length < 3
    for (const mode of this.modes) press(mode, mode.dataset.action === this.mode)
    this.playButton.textContent = player.playing ? '\u23f8' : '\u25b6'
    press(this.loopButton, player.loop)
    this.seekbar.value = player.frame
    this.counter.textContent = `${player.frame + 1} / ${player.frames}`
  }
}
