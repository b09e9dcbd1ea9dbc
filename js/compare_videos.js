// The viewer in the node Compare Videos.

import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { Viewer } from './lib/viewer.mjs'

const NODE = 'Reweave_CompareVideos'
const KEY = 'reweave_compare'
const LEAST = [420, 560]

/** The address of a file that the node has written. */
function urlOf({ filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
}

/** The node of an output's key: "10", or through subgraphs "5:3" or "<the subgraph's uuid>:3". */
function nodeOf(key) {
  const root = app.rootGraph ?? app.graph
  const way = key.split(':')
  const last = way.pop()
  const inside = (graph, part) =>
    root.subgraphs?.get(part) ?? graph?.getNodeById(Number(part))?.subgraph
  return way.reduce(inside, root)?.getNodeById(Number(last))
}

function show(node, output) {
  const clips = output?.[KEY]
  if (clips?.length) node.reweaveViewer.show(clips.map((clip) => ({ ...clip, url: urlOf(clip) })))
}

app.registerExtension({
  name: 'Reweave.CompareVideos',

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    const viewer = new Viewer()
    node.reweaveViewer = viewer
    const widget = node.addDOMWidget('viewer', 'reweave_compare', viewer.element, {
      serialize: false, // in the queued graph
      hideOnZoom: false,
      getMinHeight: () => 290
    })
    widget.serialize = false // in the saved workflow
    node.setSize([Math.max(node.size[0], LEAST[0]), Math.max(node.size[1], LEAST[1])])
    const { onExecuted, onRemoved } = node
    node.onExecuted = function (output) {
      onExecuted?.call(this, output)
      show(node, output)
    }
    node.onRemoved = function () {
      onRemoved?.call(this)
      viewer.dispose()
    }
  },

  // A workflow that is opened again in the same page still has its results.
  onNodeOutputsUpdated(outputs) {
    for (const [key, output] of Object.entries(outputs)) {
      const node = nodeOf(key)
      if (node?.comfyClass === NODE && !node.reweaveViewer?.player) show(node, output)
    }
  }
})
