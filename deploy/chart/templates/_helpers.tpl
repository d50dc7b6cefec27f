{{- define "steadfast.labels" -}}
app.kubernetes.io/name: steadfast
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
{{- define "steadfast.selector" -}}
app.kubernetes.io/name: steadfast
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Every image is for Linux; what the values say comes beside it. */}}
{{- define "steadfast.nodeSelector" -}}
{{- merge (deepCopy .) (dict "kubernetes.io/os" "linux") | toYaml }}
{{- end }}

{{/* Of pods that no privilege is needed for. */}}
{{- define "steadfast.podSecurityContext" -}}
runAsNonRoot: true
{{- with .Values.runAsUser }}
runAsUser: {{ . | int64 }}
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Flags that tell where the power hook is. */}}
{{- define "steadfast.powerHook" -}}
{{- if .Values.powerHook.url }}
- --power-hook={{ .Values.powerHook.url }}
{{- if .Values.powerHook.secret }}
- --power-hook-token=/etc/steadfast/power-hook/token
{{- if .Values.powerHook.ca }}
- --power-hook-ca=/etc/steadfast/power-hook/ca.crt
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* What the controller does in namespaces of users: in all of them, or in each of `watchNamespaces`. */}}
{{- define "steadfast.rulesInNamespaces" -}}
# Who asks for a sidecar and who has one; what leads past it.
- {apiGroups: [""], resources: [pods], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [services], verbs: [list, watch]}
# What people read with `kubectl describe`.
- {apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}
# Custom resources.
- {apiGroups: [steadfast.dev], resources: [faultpolicies, resiliencetests], verbs: [get, list, watch]}
- {apiGroups: [steadfast.dev], resources: [faultpolicies/status, resiliencetests/status], verbs: [patch]}
# Schedules: the tests that they make, and the oldest of those that have ended.
- {apiGroups: [steadfast.dev], resources: [resilienceschedules], verbs: [list, watch]}
- {apiGroups: [steadfast.dev], resources: [resilienceschedules/status], verbs: [patch]}
- {apiGroups: [steadfast.dev], resources: [resiliencetests], verbs: [create, delete]}
# Golden sets: which pods replay which, and what came of it.
- {apiGroups: [steadfast.dev], resources: [goldensets], verbs: [get, list, watch]}
- {apiGroups: [steadfast.dev], resources: [goldensets/status], verbs: [patch]}
# Golden sets that lie in ConfigMaps; reports of tests, kept beside them.
- {apiGroups: [""], resources: [configmaps], verbs: [get, create, patch]}
# What users of a test meet.
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
# How many pods a target shall have: one that is scaled away is not lost.
- {apiGroups: [apps], resources: [deployments, statefulsets, replicasets], verbs: [list, watch]}
# What steps do: podKill and evict.
- {apiGroups: [""], resources: [pods], verbs: [delete]}
- {apiGroups: [""], resources: [pods/eviction], verbs: [create]}
{{- if .Values.failures.workloads }}
# scale and rollout, and back.
- {apiGroups: [apps], resources: [deployments, statefulsets, daemonsets, replicasets], verbs: [get, patch]}
- {apiGroups: [apps], resources: [deployments/scale, statefulsets/scale, replicasets/scale], verbs: [get, patch]}
{{- end }}
# `steadfast undo` asks runs to end before the chart goes.
- {apiGroups: [steadfast.dev], resources: [resiliencetests], verbs: [patch]}
{{- end }}

{{/* The namespaces that the controller looks at, where they are named. */}}
{{- define "steadfast.watchNamespaces" -}}
{{- with .Values.watchNamespaces }}
- --watch-namespaces={{ join "," . }}
{{- end }}
{{- end }}

{{/* Before Kubernetes 1.30 a preStop hook cannot sleep, and a pod that asks for it would be refused. */}}
{{- define "steadfast.leaveSeconds" -}}
{{- if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version }}{{ .Values.proxy.leaveSeconds }}{{ else }}0{{ end }}
{{- end }}
